"""Which activations of a converted file are which of the ONNX graph's, found by what they hold.

Converters rename, fuse and lay out anew, so names say nothing. Both float graphs are run on the same few samples and
every tensor is reduced to a fingerprint that no layout changes: its size, extremes, sum and sum of squares.
Equal fingerprints on all samples are the same activation, and the range that was settled for one holds for the other.
Runs in child processes. Knows what was settled, and not by which method.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.ranges import Range
from exporter.arrays import Array
from exporter.errors import CalibrationError, first_line
from exporter.runtimes.sessions import refusals

SAMPLES = 2
"""Fingerprints of five numbers on one sample tell tensors apart; a second catches what is constant by chance."""
_TOLERANCE = 1e-4
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is left of a float tensor when its layout is forgotten."""

    size: int
    minimum: float
    maximum: float
    total: float
    squares: float

    @classmethod
    def of(cls, values: Array) -> Fingerprint:
        """Return the fingerprint of `values`, of any shape, summed in float64."""
        flat = np.asarray(values, np.float64).reshape(-1)
        if flat.size == 0:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        return cls(
            flat.size, float(flat.min()), float(flat.max()), float(flat.sum()), float(np.square(flat).sum())
        )

    def equals(self, other: Fingerprint) -> bool:
        """Whether both are of the same values up to the rounding of another order of float32 operations."""
        if self.size != other.size:
            return False
        largest = max(abs(self.minimum), abs(self.maximum), abs(other.minimum), abs(other.maximum))
        power = max(self.squares, other.squares)
        return (
            abs(self.minimum - other.minimum) <= _TOLERANCE * largest
            and abs(self.maximum - other.maximum) <= _TOLERANCE * largest
            and abs(self.total - other.total) <= _TOLERANCE * np.sqrt(self.size * power)
            and abs(self.squares - other.squares) <= 2 * _TOLERANCE * power
        )


Prints = Mapping[str, tuple[Fingerprint, ...]]
"""Fingerprints by tensor name, one a sample."""


@dataclass(frozen=True, slots=True)
class Shared:
    """`ranges` by the converted file's tensor name, and the names that need a range of their own."""

    ranges: Mapping[str, Range]
    missing: tuple[str, ...]

    def note(self) -> str:
        """Return one line that says how many ranges are the ONNX artifact's, and names the others."""
        total = len(self.ranges) + len(self.missing)
        if not total:
            return ""
        said = f"{len(self.ranges)} of {total} activation ranges are those of the ONNX artifact"
        if not self.missing:
            return said
        named = ", ".join(self.missing[:_NAMED])
        more = f" and {len(self.missing) - _NAMED} more" if len(self.missing) > _NAMED else ""
        return f"{said}; estimated anew, because it has none for them: {named}{more}"

    def carried(self, moves: Mapping[str, str]) -> Shared:
        """Return the same with ranges handed on along `moves`, {result: operand} of operators that only move data.

        In execution order: a padded or reshaped tensor holds nothing beyond its operand's range and zero.
        """
        ranges = dict(self.ranges)
        for result, operand in moves.items():
            if result in self.missing and operand in ranges:
                ranges[result] = ranges[operand]
        return Shared(ranges, tuple(name for name in self.missing if name not in ranges))


def share_ranges(wanted: Prints, known: Prints, settled: Mapping[str, tuple[float, float]]) -> Shared:
    """Return for each of `wanted` the range settled for the tensor of `known` that holds the same values.

    Where several hold the same, all of their ranges must be equal: a reshaped alias is no second opinion, and two
    opinions are none.
    """
    by_size: dict[int, list[str]] = {}
    for name in settled:
        if known.get(name):
            by_size.setdefault(known[name][0].size, []).append(name)
    ranges, missing = {}, []
    for name, prints in sorted(wanted.items()):
        found = {
            settled[other]
            for other in (by_size.get(prints[0].size, []) if prints else [])
            if len(known[other]) == len(prints)
            and all(mine.equals(theirs) for mine, theirs in zip(prints, known[other], strict=True))
        }
        if len(found) == 1:
            ((low, high),) = found
            ranges[name] = Range(float(low), float(high))
        else:
            missing.append(name)
    return Shared(ranges, tuple(missing))


def onnx_prints(model: Path, values: Collection[str], samples: Path) -> dict[str, tuple[Fingerprint, ...]]:
    """Return fingerprints of those of `values` that the float graph at `model` has, on the first samples.

    `samples` is a folder of `.npz` files, one array per graph input. Raises `CalibrationError` for samples that
    the graph does not take.
    """
    session, fetched, shown = observing_session(model, values)
    prints: dict[str, list[Fingerprint]] = {name: [] for name in (*fetched, *shown)}
    for path in sorted(samples.glob("*.npz"))[:SAMPLES]:
        with np.load(path, allow_pickle=False) as arrays:
            feeds = {value.name: arrays[value.name] for value in session.get_inputs() if value.name in arrays}
        for name in shown:
            prints[name].append(Fingerprint.of(feeds[name]))
        for name, result in zip(fetched, answers_of(session, fetched, feeds, path), strict=True):
            prints[name].append(Fingerprint.of(result))
    return {name: tuple(found) for name, found in prints.items() if found}


def observing_session(model: Path, values: Collection[str]) -> tuple[Any, list[str], list[str]]:
    """Return a session of the float graph at `model` that also answers its inner `values`.

    With it the names it answers in their order, and the names of `values` that are inputs. One thread, so that equal
    feeds give equal bits.
    """
    import onnx
    import onnxruntime

    proto = onnx.load(str(model), load_external_data=False)
    computed = {name for node in proto.graph.node for name in node.output}
    inputs = {value.name for value in proto.graph.input}
    outputs = {value.name for value in proto.graph.output}
    fetched = sorted(set(values) & computed)
    for name in fetched:
        if name not in outputs:
            proto.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.resolve().parent)
    )
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, fetched, sorted(set(values) & inputs)


def answers_of(session: Any, fetched: list[str], feeds: Mapping[str, Array], path: Path) -> list[Array]:
    """Return the values `fetched` for one sample, read from `path`; `CalibrationError` if the graph refuses it."""
    try:
        answers: list[Array] = session.run(fetched, dict(feeds)) if fetched else []
    except refusals() as error:
        raise CalibrationError(
            f"the ONNX graph refused sample {path.name}: {first_line(error)}",
            fix="check the names and shapes of the samples",
        ) from error
    return answers

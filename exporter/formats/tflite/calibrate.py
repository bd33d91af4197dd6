"""Ranges of a float `.tflite`'s own tensors, seen while the calibration samples run through it.

For what `correspondence` does not find in the ONNX graph, whose ranges are settled: the same samples are run again in
the same order, one at a time, and only fixed-size sketches are kept. Replaces litert-quantizer's calibrator, an
exponential moving average whose result depends on the order of the samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.ranges import Range, range_by
from calibration.sketch import Sketch
from exporter.arrays import Array
from exporter.errors import CalibrationError, InputError
from exporter.formats.correspondence import SAMPLES, Fingerprint


def observe(model: Path, samples: Path, tensors: Collection[str]) -> dict[str, Sketch]:
    """Return a sketch of every named float tensor of `model` over the `.npz` files in `samples`, by file name.

    A sample holds one array per signature input; integers of 64 bits are narrowed to what the file takes.
    Raises `CalibrationError` naming the sample and tensor for a missing input, a wrong shape, or a
    non-finite value, and when there is no sample.
    """
    run = ObservedRun(model, tensors)
    sketches = {name: Sketch.empty() for name in run.names}
    for path in run.paths(samples):
        for name, values in run.on(path):
            _update(sketches[name], values, name, path)
    return sketches


def fingerprints(model: Path, samples: Path, tensors: Collection[str]) -> dict[str, tuple[Fingerprint, ...]]:
    """Return the fingerprints of every named float tensor of `model` on the first samples.

    Raises what `observe` raises, but for values that are not finite.
    """
    run = ObservedRun(model, tensors)
    prints: dict[str, list[Fingerprint]] = {name: [] for name in run.names}
    for path in run.paths(samples)[:SAMPLES]:
        for name, values in run.on(path):
            prints[name].append(Fingerprint.of(values))
    return {name: tuple(found) for name, found in prints.items()}


class ObservedRun:
    """A float `.tflite` that shows its inner tensors; `names` are those of the wanted ones that it has."""

    def __init__(self, model: Path, tensors: Collection[str]) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._interpreter = Interpreter(
            model_path=str(model),
            num_threads=1,
            experimental_preserve_all_tensors=True,
            # XNNPACK computes several operators at once and leaves the tensors between them unwritten.
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter.allocate_tensors()
        self._runner = self._interpreter.get_signature_runner()
        self._indices = {
            detail["name"]: detail["index"]
            for detail in self._interpreter.get_tensor_details()
            if detail["name"] in set(tensors) and detail["dtype"] == np.float32
        }
        self.names = sorted(self._indices)

    def paths(self, samples: Path) -> list[Path]:
        """Return the samples in order; `CalibrationError` if there is none."""
        paths = sorted(samples.glob("*.npz"))
        if not paths:
            raise CalibrationError(f"{samples} holds no .npz sample", fix="give the recipe calibration data")
        return paths

    def on(self, path: Path) -> Iterator[tuple[str, Array]]:
        """Run one sample and yield each tensor by name, valid until the next run."""
        self._runner(**_feeds(path, self._runner.get_input_details()))
        for name in self.names:
            yield name, self._interpreter.get_tensor(self._indices[name])


def ranges(sketches: dict[str, Sketch], rule: str) -> dict[str, Range]:
    """Return each tensor's range by the rule of that name (`calibration.ranges.RULES`)."""
    try:
        return {name: range_by(rule, sketch) for name, sketch in sketches.items()}
    except ValueError as error:
        raise InputError(
            f"no range rule is called {rule!r}", fix="use auto, minmax, percentile, mse or entropy"
        ) from error


def _update(sketch: Sketch, values: Array, name: str, path: Path) -> None:
    try:
        sketch.update(values)
    except CalibrationError as error:
        raise CalibrationError(
            f"tensor {name} {error.cause}, for sample {path.name}", fix=error.fix
        ) from error


def _feeds(path: Path, details: dict[str, dict[str, Any]]) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name, detail in details.items():
            if name not in arrays:
                raise CalibrationError(
                    f"sample {path.name} lacks input {name!r}; it holds {', '.join(sorted(arrays)) or 'nothing'}",
                    fix="name the arrays after the model's inputs",
                )
            expected = tuple(int(axis) for axis in detail["shape"])
            if arrays[name].shape != expected:
                raise CalibrationError(
                    f"input {name!r} of sample {path.name} has shape {arrays[name].shape}, expected {expected}",
                    fix="store one sample a file, in the shape that the .tflite is fixed to",
                )
            feeds[name] = arrays[name].astype(detail["dtype"], copy=False)
            _require_finite(feeds[name], name, path)
    return feeds


def _require_finite(values: Array, name: str, path: Path) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        where = tuple(int(axis) for axis in np.argwhere(~np.isfinite(values))[0])
        raise CalibrationError(
            f"input {name!r} of sample {path.name} holds {values[where]} at {where}", fix="remove that sample"
        )

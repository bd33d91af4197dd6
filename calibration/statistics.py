"""What was seen of a whole model: one sketch a tensor, of which model and which data.

Merges, and is stored as stable bytes. Must not know how it was collected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calibration.ranges import Range, Rule, range_by
from calibration.sketch import Sketch
from calibration.stored import pack, read_whole, unpack, write_whole
from exporter import __version__
from exporter.errors import CalibrationError, IntegrityError, InternalError

_MAGIC = b"edge-exporter statistics 2\n"


@dataclass(frozen=True, slots=True)
class Shards:
    """Which of the `count` shards of a data set were seen: `held`, ascending, counted from 1.

    Shard i of n holds the samples i - 1, i - 1 + n, i - 1 + 2n, …
    """

    count: int
    held: tuple[int, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """The shards that were not seen, ascending."""
        return tuple(number for number in range(1, self.count + 1) if number not in self.held)

    def __str__(self) -> str:
        return ", ".join(f"{number}/{self.count}" for number in self.held)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What `collect` saw: every range rule can be derived from it.

    Nothing in it depends on batch size or storage. `model_sha256` names the float model, `dataset_fingerprint` the
    whole data set (of merged data sets: those of the parts, sorted and joined by "+"), `samples` how many samples were
    seen. `shards` says which part of the data set those are; `None` is all of it. `tool_version` is this tool's.
    """

    sketches: Mapping[str, Sketch]
    model_sha256: str
    dataset_fingerprint: str
    samples: int
    shards: Shards | None = None
    tool_version: str = __version__

    def range_of(self, tensor: str, rule: Rule | str) -> Range:
        """Return the range of `tensor` under `rule`; CalibrationError, naming it, if it was always empty."""
        sketch = self.sketches.get(tensor)
        if sketch is None:
            raise InternalError(
                f"tensor {tensor!r} was not observed", fix="observe it: name it in the tensors to collect"
            )
        try:
            return range_by(rule, sketch)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {tensor!r}: {error.cause}", fix=error.fix) from error

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both, as if collected in one.

        Shards of one data set, or whole data sets. Bit-exact, whatever the order: the last missing shard makes it
        the statistics of the whole, byte for byte. Raises CalibrationError when they are of different models or
        tensors, and when a shard or a data set is in both, by name.
        """
        if self.model_sha256 != other.model_sha256:
            raise CalibrationError(
                f"statistics of models {self.model_sha256[:12]} and {other.model_sha256[:12]} do not merge",
                fix="collect both from the same model file",
            )
        if self.sketches.keys() != other.sketches.keys():
            odd = sorted(self.sketches.keys() ^ other.sketches.keys())
            raise CalibrationError(
                f"statistics of different tensors cannot be merged ({odd[0]!r} is in one only)",
                fix="collect the same tensors",
            )
        fingerprint, shards = _joined(self, other)
        merged = {name: sketch.merge(other.sketches[name]) for name, sketch in self.sketches.items()}
        versions = {*self.tool_version.split("+"), *other.tool_version.split("+")}
        return Statistics(
            MappingProxyType(merged),
            self.model_sha256,
            fingerprint,
            self.samples + other.samples,
            shards,
            "+".join(sorted(versions)),
        )

    def require_whole(self, name: str) -> None:
        """Raise CalibrationError, naming the missing shards, unless all of the data set was seen."""
        if self.shards is not None:
            missing = ", ".join(f"{number}/{self.shards.count}" for number in self.shards.missing)
            raise CalibrationError(
                f"{name} holds shard {self.shards} of its data set and lacks {missing}",
                fix="calibrate the missing shards and merge them all",
            )

    def to_bytes(self) -> bytes:
        """Return a stable form: equal statistics give equal bytes on every machine."""
        shards = None if self.shards is None else [self.shards.count, *self.shards.held]
        header = {
            "model_sha256": self.model_sha256,
            "dataset_fingerprint": self.dataset_fingerprint,
            "samples": self.samples,
            "shards": shards,
            "tool_version": self.tool_version,
        }
        return pack(_MAGIC, header, self.sketches)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "statistics") -> Statistics:
        """Return what `to_bytes` wrote; raises IntegrityError, naming `name`, for any other bytes."""
        header, sketches = unpack(_MAGIC, data, name)
        try:
            return _from_header(header, sketches)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{name}: calibration statistics have no {error}", fix="calibrate again"
            ) from error

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all. Raises ResourceError when the disk refuses."""
        write_whole(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Return what `save` wrote; IntegrityError when it is missing, damaged or of another version."""
        return cls.from_bytes(read_whole(path), str(path))


def _from_header(header: Mapping[str, Any], sketches: Mapping[str, Sketch]) -> Statistics:
    shards = header["shards"]
    return Statistics(
        MappingProxyType(dict(sketches)),
        header["model_sha256"],
        header["dataset_fingerprint"],
        header["samples"],
        None if shards is None else Shards(shards[0], tuple(shards[1:])),
        header["tool_version"],
    )


def _joined(one: Statistics, other: Statistics) -> tuple[str, Shards | None]:
    """Return the fingerprint and the shards of both; CalibrationError where they overlap or do not fit."""
    if one.shards is None and other.shards is None:
        parts = one.dataset_fingerprint.split("+") + other.dataset_fingerprint.split("+")
        twice = next((part for part in parts if parts.count(part) > 1), None)
        if twice is not None:
            raise CalibrationError(
                f"data set {twice[:12]} is in both statistics", fix="merge each data set's statistics once"
            )
        return "+".join(sorted(parts)), None
    if one.dataset_fingerprint != other.dataset_fingerprint:
        raise CalibrationError(
            f"shards of data sets {one.dataset_fingerprint[:12]} and {other.dataset_fingerprint[:12]} do not merge",
            fix="calibrate all shards on the same data; merge the shards of each data set first",
        )
    if one.shards is None or other.shards is None:
        raise CalibrationError(
            f"shard {one.shards or other.shards} is in both statistics: one of them holds the whole data set",
            fix="leave the shard out",
        )
    if one.shards.count != other.shards.count:
        raise CalibrationError(
            f"shards {one.shards} and {other.shards} are cut differently",
            fix="cut the data set into the same number of shards everywhere",
        )
    common = sorted({*one.shards.held} & {*other.shards.held})
    if common:
        raise CalibrationError(
            f"shard {common[0]}/{one.shards.count} is in both statistics", fix="merge each shard once"
        )
    union = Shards(one.shards.count, tuple(sorted((*one.shards.held, *other.shards.held))))
    return one.dataset_fingerprint, union if union.missing else None

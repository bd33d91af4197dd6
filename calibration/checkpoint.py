"""Where an interrupted calibration goes on: what was seen so far, and of what.

Knows sketches and one file. Must not know how they are collected.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.sketch import Sketch
from calibration.stored import pack, read_whole, unpack, write_whole
from exporter import __version__
from exporter.errors import CalibrationError

EVERY_S = 10.0
"""Seconds between two writes: what an interruption costs at most, besides the sample it falls into."""

_MAGIC = b"edge-exporter checkpoint 1\n"


@dataclass(frozen=True, slots=True)
class Task:
    """What is being collected: whose statistics a checkpoint holds a part of."""

    model_sha256: str
    dataset_fingerprint: str
    tensors: frozenset[str]
    shard: tuple[int, int]


@dataclass(slots=True)
class Collected:
    """What was seen so far: a sketch of each tensor, and of how many samples it is."""

    sketches: dict[str, Sketch]
    samples: dict[str, int]

    @classmethod
    def nothing(cls, tensors: tuple[str, ...]) -> Collected:
        """Return the state before the first sample."""
        return cls({name: Sketch.empty() for name in tensors}, dict.fromkeys(tensors, 0))

    @property
    def done(self) -> int:
        """How many samples were seen, taken over all tensors (rounded down)."""
        return sum(self.samples.values()) // max(1, len(self.samples))


class Checkpoint:
    """The file at `path` (`None`: nothing is kept) that holds what was collected of `task`."""

    def __init__(self, path: Path | None, task: Task) -> None:
        self._path, self._task = path, task
        self._written = time.monotonic()

    def resume(self, tensors: tuple[str, ...]) -> Collected:
        """Return what the file holds, or the beginning if there is none.

        Raises IntegrityError for a damaged file, CalibrationError for one of another model, data set, shard or
        set of tensors: it is never silently written over.
        """
        if self._path is None or not self._path.exists():
            return Collected.nothing(tensors)
        header, sketches = unpack(_MAGIC, read_whole(self._path), str(self._path))
        self._require_same(header, frozenset(sketches))
        return Collected(
            {name: sketches[name] for name in tensors}, {name: header["samples"][name] for name in tensors}
        )

    def note(self, collected: Collected) -> None:
        """Write what was collected, if the last writing is `EVERY_S` ago."""
        if self._path is not None and time.monotonic() - self._written >= EVERY_S:
            self.write(collected)

    def write(self, collected: Collected) -> None:
        """Write what was collected, whole or not at all. Raises ResourceError when the disk refuses."""
        if self._path is None:
            return
        header = {
            "model_sha256": self._task.model_sha256,
            "dataset_fingerprint": self._task.dataset_fingerprint,
            "shard": list(self._task.shard),
            "tool_version": __version__,
            "samples": collected.samples,
        }
        write_whole(self._path, pack(_MAGIC, header, collected.sketches))
        self._written = time.monotonic()

    def _require_same(self, header: Mapping[str, object], tensors: frozenset[str]) -> None:
        task = self._task
        differs = {
            "model": header["model_sha256"] != task.model_sha256,
            "data set": header["dataset_fingerprint"] != task.dataset_fingerprint,
            "shard": header["shard"] != list(task.shard),
            "set of tensors": tensors != task.tensors,
            "version of this tool": header["tool_version"] != __version__,
        }
        other = next((what for what, is_other in differs.items() if is_other), None)
        if other is not None:
            raise CalibrationError(
                f"checkpoint {self._path} is of another {other}",
                fix="remove it to start afresh, or give what it was started with",
            )

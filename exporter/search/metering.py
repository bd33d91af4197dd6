"""What a search measures of models on their way to a trial's artifact: as little as it can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from exporter.artifacts import ModelFigures
from exporter.model.graph import node_macs, parameter_count
from exporter.model.source import SourceModel
from exporter.stages.measure import MEASURED_FILE, deflated_bytes, export, measure
from exporter.system.files import size_bytes


class Exports:
    """The float graphs of a search's models: of the one as loaded, and of the one that was exported last."""

    def __init__(self, loaded: SourceModel, path: Path) -> None:
        """Export the model as `loaded` to `path`; raises what exporting raises."""
        self.loaded = loaded
        self.original = export(loaded, path)
        self._last: tuple[SourceModel, Path] | None = None

    def of(self, source: SourceModel, path: Path) -> Path:
        """Return the tidy float graph of `source`: as exported a moment ago, or written to `path`."""
        if source is self.loaded:
            return self.original
        if self._last is None or self._last[0] is not source or not self._last[1].exists():
            self._last = (source, export(source, path))
        return self._last[1]

    def figures(self, onnx: Path) -> ModelFigures:
        """Return what the float graph at `onnx` tells without being run."""
        graph, files = ir.load(onnx), files_of(onnx)
        macs = sum(node_macs(graph, self.loaded.axes).values())
        download = sum(map(deflated_bytes, files))
        return ModelFigures(
            parameter_count(graph), macs, sum(map(size_bytes, files)), download, 0.0, None, None, None
        )


def files_of(onnx: Path) -> list[Path]:
    """Return `onnx` and the file of its weights, if it has one of its own."""
    return [onnx, *onnx.parent.glob(f"{onnx.name}.data")]


@dataclass(slots=True)
class TrialMeter:
    """The `Meter` of a search's trials, which have the model as loaded in common: it is measured once.

    It scores nothing and, unless `timed` because a step is to reach a latency, runs nothing.
    """

    exports: Exports
    timed: bool
    _as_loaded: ModelFigures | None = field(default=None, init=False)

    def measure(self, source: SourceModel, folder: Path) -> ModelFigures:
        """Return the figures of `source` as exported, without a score."""
        if source is not self.exports.loaded:
            return self._measured(source, folder)
        if self._as_loaded is None:
            self._as_loaded = self._measured(source, folder)
        return self._as_loaded

    def _measured(self, source: SourceModel, folder: Path) -> ModelFigures:
        if self.timed:
            return measure(source, folder)
        return self.exports.figures(self.exports.of(source, folder / MEASURED_FILE))

    def race(self, folders: Sequence[Path], source: SourceModel, scratch: Path) -> list[float]:  # noqa: ARG002
        """Return that nothing was timed: a search times the artifact, once, and not every step on the way to it."""
        return [math.nan] * len(folders)

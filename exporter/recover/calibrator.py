"""Activation ranges of graphs whose numbers change: calibrated once per graph, asked for as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporter.errors import CalibrationError
from exporter.model.onnx_write import save_onnx
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import observable

if TYPE_CHECKING:
    from calibration.dataset import Dataset
    from calibration.statistics import Statistics


REMEMBERED = 3
"""Graphs whose statistics are kept: a rung that did not help is followed by one that stands on an older graph."""


class Calibrator:
    """Runs the calibration set through a graph when it is first asked about, and remembers the last few graphs.

    `trained` are ranges that training has settled, by tensor; `collecting` is told how many samples were seen.
    """

    def __init__(
        self,
        dataset: Dataset | None,
        folder: Path,
        *,
        trained: Mapping[str, tuple[float, float]],
        collecting: Callable[[int], None],
    ) -> None:
        self._dataset, self._folder, self._trained, self._collecting = dataset, folder, trained, collecting
        self._seen: list[tuple[ir.Model, Statistics]] = []
        self._first: Statistics | None = None

    @property
    def first(self) -> Statistics | None:
        """What was seen of the first graph that was asked about; `None` if none was."""
        return self._first

    def remember(self, model: ir.Model, statistics: Statistics) -> None:
        """Take `statistics` as those of `model`."""
        self._first = self._first or statistics
        self._seen = [*self._seen, (model, statistics)][-REMEMBERED:]

    def statistics_of(self, model: ir.Model, keep: Sequence[str]) -> Statistics:
        """Return what was seen of `model`; runs the calibration set unless that is known."""
        for seen, statistics in self._seen:
            if seen is model:
                return statistics
        from calibration.collect import collect

        if self._dataset is None:
            raise CalibrationError(
                "a static scheme needs calibration data", fix="add [data] calibration to the recipe"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "observed.onnx"
        files = save_onnx(model, path)
        statistics = collect(
            path,
            observable(model, keep),
            self._dataset,
            progress=lambda done, _total: self._collecting(done),
        )
        for file in files:
            file.unlink()
        self.remember(model, statistics)
        return statistics

    def encode(self, model: ir.Model, keep: Sequence[str], rule: str) -> dict[str, tuple[float, float]]:
        """Return the range by `rule` of every activation that a static scheme puts on a grid under `keep`."""
        return choose_ranges(model, self.statistics_of(model, ()), rule, keep, self._trained)

"""FloatGraph → Settling: every integer scheme of a plan, calibrated once and brought within its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporter.artifacts import Recovery
from exporter.jobs.shared.opening import FloatGraph
from exporter.jobs.shared.statistics import load_statistics_for
from exporter.progress import Progress
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.quantize import check_keep
from exporter.quantize.regions import observable
from exporter.recover.calibrator import Calibrator
from exporter.recover.candidates import Wishes
from exporter.recover.judge import Judge
from exporter.recover.settling import Recovering, Settled
from exporter.schemes import Scheme

if TYPE_CHECKING:
    from calibration.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Settling:
    """How each scheme of a plan is stored, and what calibration saw of the float graph (`None`: nobody asked)."""

    schemes: Mapping[Scheme, Settled]
    statistics: Statistics | None

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """How the budgets were kept, of the schemes that had one."""
        return tuple(item.recovery for item in self.schemes.values() if item.recovery is not None)

    def extremes(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest number that calibration saw of each tensor."""
        if self.statistics is None:
            return {}
        return {
            name: (sketch.minimum, sketch.maximum)
            for name, sketch in self.statistics.sketches.items()
            if sketch.count
        }


def settle_all(
    graph: FloatGraph,
    folder: Path,
    *,
    progress: Progress,
    calibrated: Callable[[int], None] = lambda _done: None,
    climbs: bool = True,
) -> Settling:
    """Return how each scheme of the graph's plan is stored.

    `folder` is scratch that outlives the artifacts; `calibrated` is told how many samples were seen; without `climbs`
    the recipe's budget is left to whoever asks. Raises `GateError` (14) for a budget that cannot be kept, and what
    loading statistics raises.
    """
    table = graph.plan.recipe.quantize
    folder.mkdir(parents=True, exist_ok=True)
    model = ir.load(graph.onnx)
    check_keep(model, table.keep)
    calibrator = _calibrator(graph, model, folder, calibrated)
    recovering = Recovering(
        model=model,
        onnx=graph.onnx,
        axes=graph.source.axes,
        samples=graph.data.calibration,
        calibrator=calibrator,
        judge=Judge(graph.onnx, graph.data.judging, folder / "judge", baseline=graph.baseline),
        trained=graph.source.ranges,
        folder=folder,
        progress=progress,
    )
    wishes = Wishes(
        rule=table.rule,
        keep=table.keep,
        methods=table.recover,
        max_drop=table.max_drop if climbs else None,
        verdict=table.max_drop_verdict,
        conv_int4=table.conv_int4,
    )
    schemes = {
        scheme: Settled(graph.onnx, Encodings(keep=table.keep))
        if scheme.is_float
        else recovering.settle(scheme, wishes)
        for scheme in dict.fromkeys(planned.spec.scheme for planned in graph.plan.artifacts)
    }
    return Settling(schemes, calibrator.first)


def _calibrator(
    graph: FloatGraph, model: ir.Model, folder: Path, calibrated: Callable[[int], None]
) -> Calibrator:
    """Return what gives ranges: from the statistics that the recipe names, or by running the calibration set."""
    recipe = graph.plan.recipe
    calibrator = Calibrator(
        graph.data.calibration, folder, trained=graph.source.ranges, collecting=calibrated
    )
    if recipe.data.statistics is not None:
        path = recipe.resolve(recipe.data.statistics)
        wanted = observable(model, recipe.quantize.keep)
        calibrator.remember(model, load_statistics_for(path, graph.onnx, wanted))
    return calibrator

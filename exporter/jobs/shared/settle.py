"""Plan × float graph × data → Settled: every integer scheme of a build, calibrated once and brought within budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporter.jobs.shared.statistics import load_statistics_for
from exporter.model.source import SourceModel
from exporter.progress import Progress
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.quantize import check_keep, quantize
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import decide_regions
from exporter.recipe.planning import Plan
from exporter.recover.calibrator import Calibrator
from exporter.recover.judge import Judge
from exporter.recover.settling import Recovering, Settled, Wishes
from exporter.schemes import Scheme
from exporter.stages.data import BuildData

if TYPE_CHECKING:
    from calibration.statistics import Statistics

__all__ = ["Settled", "observable", "settle_all"]


def settle_all(
    plan: Plan,
    source: SourceModel,
    onnx: Path,
    data: BuildData,
    folder: Path,
    progress: Progress,
    calibrated: Callable[[int], None],
    *,
    baseline: float | None = None,
    climbs: bool = True,
) -> tuple[dict[Scheme, Settled], Statistics | None]:
    """Return how each scheme of `plan` is stored, and what calibration saw of the float graph `onnx`.

    `folder` is scratch that outlives the artifacts; `calibrated` is told how many samples were seen; `baseline` is
    the score that drops are counted from (default: that of `onnx`); without `climbs` the recipe's budget is left to
    whoever asks. Raises `GateError` (14) for a budget that cannot be kept, and what loading statistics raises.
    """
    table = plan.recipe.quantize
    folder.mkdir(parents=True, exist_ok=True)
    model = ir.load(onnx)
    check_keep(model, table.keep)

    @cache
    def judge() -> Judge:
        return Judge(
            onnx,
            data.samples,
            folder / "judge",
            metric_name=data.metric_name,
            metric=data.metric,
            labels=data.labels,
            baseline=baseline,
        )

    calibrator = Calibrator(
        data.calibration,
        folder,
        wanted=observable,
        choose=choose_ranges,
        settled=source.ranges,
        collecting=calibrated,
    )
    if plan.recipe.data.statistics is not None:
        collected = load_statistics_for(
            plan.recipe.resolve(plan.recipe.data.statistics), onnx, observable(model, table.keep)
        )
        calibrator.remember(model, collected)
    recovering = Recovering(
        model=model,
        onnx=onnx,
        axes=source.axes,
        samples=data.calibration,
        calibrator=calibrator,
        judge=judge,
        quantize=quantize,
        settled=source.ranges,
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
    settled = {
        scheme: Settled(onnx, Encodings(keep=table.keep))
        if scheme.is_float
        else recovering.settle(scheme, wishes)
        for scheme in dict.fromkeys(planned.spec.scheme for planned in plan.artifacts)
    }
    return settled, calibrator.first


def observable(model: ir.Model, keep: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of all activations whose range some choice of float layers could ask for."""
    return tuple(dict.fromkeys([*decide_regions(model, ()).grids, *decide_regions(model, keep).grids]))

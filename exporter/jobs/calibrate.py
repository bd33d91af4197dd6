"""Calibration alone: a model and data in, a statistics file out, from which every range can be chosen later.

The same graph, in the same form, as `quantize` and `build` calibrate, so that its file serves them too. Shards of
one data set, calibrated anywhere, merge to the file of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import CalibrationError, UnsupportedError, UsageError
from exporter.jobs.shared.clock import Clock
from exporter.jobs.shared.host import HostTarget
from exporter.jobs.shared.statistics import load_statistics
from exporter.progress import Progress
from exporter.recipe.planning import Origin, Plan, make_plan
from exporter.recipe.recipe import read_recipe, recipe_of
from exporter.system.files import scratch_folder

if TYPE_CHECKING:
    from calibration.statistics import Statistics
    from exporter.jobs.shared.opening import FloatGraph


@dataclass(frozen=True, slots=True)
class Calibrating:
    """What to calibrate and how: an ONNX file with a table as under `[data] calibration`, or a recipe that has one.

    `shard` (i, n) is the i-th of n, counted from 1. `max_memory_bytes` bounds what one sample's observed activations
    take at once. With `resume`, what an interrupted run left beside `out` is gone on with; without, it is dropped.
    """

    model: Path
    out: Path
    data: Mapping[str, Any] | None = None
    shard: tuple[int, int] = (1, 1)
    max_memory_bytes: int | None = None
    resume: bool = False
    threads: int = 0


def plan_of(request: Calibrating) -> Plan:
    """Return the plan of a request; raises what recipes and plans raise, and `UsageError` for what does not fit."""
    if request.model.suffix.lower() == ".toml":
        return _plan_of_recipe(request)
    if request.model.suffix.lower() != ".onnx":
        raise UsageError(
            f"{request.model} is neither an .onnx file nor a recipe", fix="give MODEL.onnx or RECIPE.toml"
        )
    if request.data is None:
        raise UsageError(f"{request.model} comes without data", fix="add --data PATH")
    tables: dict[str, Any] = {
        "model": {"name": "model", "version": "0.0.0", "path": str(request.model.absolute())},
        "data": {"calibration": dict(request.data)},
        "targets": {"host": {"artifacts": ["onnx:static_wi8_ai8"]}},
    }
    return make_plan(recipe_of(tables, "calibrate", folder=Path.cwd()), {"host": HostTarget()})


def _plan_of_recipe(request: Calibrating) -> Plan:
    from targets.discovery import get_target

    recipe = read_recipe(request.model)
    if request.data is not None:
        raise UsageError(
            f"--data, and {request.model} names its own", fix="leave --data out, or give the .onnx file"
        )
    if recipe.compress:
        raise UnsupportedError(
            f"{request.model} compresses its model before it is calibrated",
            fix="build it: the calibration belongs to the compressed model",
        )
    return make_plan(recipe, {name: get_target(name) for name in recipe.targets})


def checkpoint_of(out: Path) -> Path:
    """Return where an unfinished calibration for `out` is kept."""
    return out.with_name(f".{out.name}.checkpoint")


def calibrate_file(request: Calibrating, plan: Plan, *, progress: Progress, log: Path) -> Statistics:
    """Write `request.out` and return what is in it; raises any `EdgeError`."""
    from calibration.collect import collect
    from exporter.jobs.shared.opening import float_graph, open_model

    _require_folder(request.out)
    checkpoint = checkpoint_of(request.out)
    if not request.resume:
        checkpoint.unlink(missing_ok=True)
    clock = Clock(progress)
    with scratch_folder("calibrate") as workdir:
        # As `quantize` does: the data says how long the named axes of an ONNX file are.
        opened = open_model(
            plan, clock=clock, log=log, axes_from_data=plan.origin is Origin.ONNX, heed=_is_of_calibration
        )
        calibration = opened.data.calibration
        if calibration is None:
            raise CalibrationError(
                f"{request.model} names no calibration data", fix="add [data] calibration to the recipe"
            )
        graph = float_graph(opened, workdir, clock=clock)
        tensors = _observable(graph)
        with clock.stage("calibrating", _shard_size(len(calibration), request.shard)) as advance:
            statistics = collect(
                graph.onnx,
                tensors,
                calibration,
                threads=request.threads,
                progress=lambda done, _total: advance(done),
                shard=request.shard,
                checkpoint=checkpoint,
                max_memory=request.max_memory_bytes,
                say=progress.say,
            )
    statistics.save(request.out)
    checkpoint.unlink(missing_ok=True)
    return statistics


def _is_of_calibration(finding: str) -> bool:
    """Whether `finding` is about calibration data: evaluation does not happen here."""
    return finding.startswith("calibration data")


def _observable(graph: FloatGraph) -> tuple[str, ...]:
    import onnx_ir as ir

    from exporter.quantize.regions import observable

    tensors = observable(ir.load(graph.onnx))
    if not tensors:
        raise UnsupportedError(
            f"{graph.source.name} has no operator that a static scheme quantises, so nothing needs a range",
            fix="use a dynamic or weight-only scheme: they need no calibration",
        )
    return tensors


def _shard_size(samples: int, shard: tuple[int, int]) -> int:
    number, count = shard
    return len(range(number - 1, samples, count))


def _require_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder", fix="create it, or write elsewhere with --out")


def merge_files(paths: Sequence[Path], out: Path) -> Statistics:
    """Write to `out` the statistics of all `paths` as one, and return them.

    Raises `CalibrationError` for files that do not belong together, overlap, or of whose data set a shard is missing,
    naming the file or the shard; `IntegrityError` for a damaged one.
    """
    _require_folder(out)
    merged = load_statistics(paths[0])
    for path in paths[1:]:
        try:
            merged = merged.merge(load_statistics(path))
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error.cause}", fix=error.fix) from error
    merged.require_whole(", ".join(str(path) for path in paths))
    merged.save(out)
    return merged

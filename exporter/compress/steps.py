"""SourceModel → SourceModel, by the recipe's `[[compress]]` steps: each measured as the file it exports to.

Here lives what all methods share: the order of steps, figures before and after, and what lets a killed build
go on where it was. The methods are modules of this package; a table's type selects its method.
"""

from __future__ import annotations

import copy
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporter.artifacts import CompressionStep, ModelFigures, to_plain
from exporter.compress.base import Measure, Regions, StepContext, StepResult
from exporter.compress.memory import peak_rss_mb, restart_peak
from exporter.compress.saved import SavedStep, key_of, read_step, write_step
from exporter.errors import UnsupportedError
from exporter.model.source import SourceModel
from exporter.progress import Progress
from exporter.recipe.compression import (
    CompressTable,
    DistillTable,
    FactorizeTable,
    PruneTable,
    QatTable,
    SparsifyTable,
    StudentTable,
)
from exporter.recipe.recipe import Recipe
from exporter.system.processes import rank
from exporter.training.distributed import is_main, share, wait

if TYPE_CHECKING:
    from torch import nn

    from calibration.dataset import Dataset
    from exporter.training.data import TrainingData


MEASURED_FILE = "measured.onnx"
_AFTER = "after"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the build lends to the steps; `folder` survives a killed build, `resume` says to go on from it.

    `measure` exports a model to `MEASURED_FILE` in a folder and returns its figures, `race` the median latencies
    of such files measured in turns, `export` writes the tidy graph to a path; `decide_regions` is as in
    `StepContext`.
    """

    recipe: Recipe
    training: TrainingData | None
    calibration: Dataset | None
    folder: Path
    resume: bool
    progress: Progress
    measure: Callable[[SourceModel, Path], ModelFigures]
    race: Callable[[Sequence[Path], SourceModel, Path], list[float]]
    export: Callable[[SourceModel, Path], Path]
    decide_regions: Callable[[ir.Model, Sequence[str]], Regions]


@dataclass(frozen=True, slots=True)
class Compressed:
    """The model after all steps, what each did, and how to rebuild its structure from the original module."""

    source: SourceModel
    original: ModelFigures
    steps: tuple[CompressionStep, ...]
    edits: tuple[Mapping[str, Any], ...]


def compress(source: SourceModel, workshop: Workshop) -> Compressed:
    """Return `source` after every step of the recipe; the given model is not changed.

    In a run of several processes all take part, and the main one's measurements count for all. Raises what
    the methods raise; finished steps stay in `workshop.folder` until the build has ended well.
    """
    if source.module is None:
        raise UnsupportedError(
            "[[compress]] changes torch modules, and this model came as ONNX",
            fix="give the model as a factory with weights, or remove [[compress]]",
        )
    if not workshop.resume and is_main():
        shutil.rmtree(workshop.folder, ignore_errors=True)
    wait()
    start = workshop.folder / "00-original" / _AFTER
    original = figures = _shared(lambda model: workshop.measure(model, start), source)
    current, key = source, ""
    done: list[SavedStep] = []
    edits: list[Mapping[str, Any]] = []
    for number, table in enumerate(workshop.recipe.compress, start=1):
        key = key_of(key, table, workshop, current)
        folder = workshop.folder / f"{number:02d}-{table.method}"
        with workshop.progress.step(f"compressing {number}/{len(workshop.recipe.compress)}: {table.method}"):
            step = _resumed(folder, key, current, table, workshop) or _run(
                folder, key, current, table, workshop, source, original, figures
            )
        current, figures = step.source, step.record.after
        done.append(step)
        edits.append(step.edit)
    folders = [
        start,
        *(workshop.folder / f"{n:02d}-{s.record.method}" / _AFTER for n, s in enumerate(done, 1)),
    ]
    timed = _timed_together(workshop, folders, source, [original, *(step.record.after for step in done)])
    records = tuple(
        replace(step.record, original=timed[0], before=before, after=after)
        for step, before, after in zip(done, timed, timed[1:], strict=False)
    )
    return Compressed(current, timed[0], records, tuple(edits))


def _timed_together(
    workshop: Workshop, folders: Sequence[Path], source: SourceModel, figures: Sequence[ModelFigures]
) -> list[ModelFigures]:
    """Return `figures` with latencies measured in turns: those of the steps were taken minutes apart."""

    def times() -> list[float]:
        return workshop.race([folder / MEASURED_FILE for folder in folders], source, workshop.folder)

    shared: list[float] = share(times() if is_main() else None)
    return [replace(item, p50_ms=p50_ms) for item, p50_ms in zip(figures, shared, strict=True)]


def rebuild(source: SourceModel, edits: Sequence[Mapping[str, Any]], folder: Path = Path()) -> nn.Module:
    """Return a module with the structure that `edits` describe, made from a copy of `source`'s original module.

    `folder` is the recipe's, where factories of students are looked for.
    Load `weights.safetensors` of the same compression into it to have the compressed model.
    """
    module = copy.deepcopy(source.module)
    if module is None:
        raise TypeError("this model came as ONNX and has no torch module")
    for edit in edits:
        placed = {"folder": str(folder), **edit}
        module = _replay(str(edit["kind"]))(module, placed, replace(source, module=module))
    return module.eval()


# --- one step --------------------------------------------------------------------------------------------


def _run(
    folder: Path,
    key: str,
    current: SourceModel,
    table: CompressTable,
    workshop: Workshop,
    original: SourceModel,
    original_figures: ModelFigures,
    before: ModelFigures,
) -> SavedStep:
    started = time.monotonic()
    restart_peak()
    folder.mkdir(parents=True, exist_ok=True)
    measure = functools.partial(_shared, lambda model: workshop.measure(model, folder / "measuring"))
    result = _method(table)(current, table, _context(folder, table.method, workshop, original, measure))
    peak = peak_rss_mb()
    after = _shared(lambda model: workshop.measure(model, folder / _AFTER), result.source)
    record = CompressionStep(
        method=table.method,
        settings=table.model_dump(mode="json", exclude_unset=True),
        original=original_figures,
        before=before,
        changed=None if result.changed is None else measure(result.changed),
        after=after,
        trainings=tuple(to_plain(training) for training in result.trainings),
        details=dict(result.details or {}),
        notes=result.notes,
        seconds=time.monotonic() - started,
        peak_rss_mb=peak,
    )
    step = SavedStep(result.source, {"kind": table.method, **result.edit}, record)
    if is_main():
        write_step(folder, key, step)
    wait()
    return step


def _resumed(
    folder: Path, key: str, current: SourceModel, table: CompressTable, workshop: Workshop
) -> SavedStep | None:
    """Return the finished step that an earlier, killed build left in `folder`, if it is this very step."""
    if not workshop.resume:
        return None
    edit = _read_shared(folder, key)
    if edit is None:
        return None
    module = _replay(table.method)(copy.deepcopy(current.module), edit, current)
    step = read_step(folder, current, module)
    workshop.progress.say(f"{table.method}: already done by the build that was interrupted")
    return step


def _read_shared(folder: Path, key: str) -> Mapping[str, Any] | None:
    from exporter.compress.saved import finished_edit

    edit: Mapping[str, Any] | None = share(finished_edit(folder, key) if is_main() else None)
    return edit


def _shared(measure: Callable[[SourceModel], ModelFigures], source: SourceModel) -> ModelFigures:
    """Return the main process's measurement in all processes: the others' cores are busy or other ones."""
    return ModelFigures(**share(to_plain(measure(source)) if is_main() else None))


def _context(
    folder: Path, method: str, workshop: Workshop, original: SourceModel, measure: Measure
) -> StepContext:
    from exporter.training.loop import train

    return StepContext(
        recipe=workshop.recipe,
        original=original,
        training=workshop.training,
        calibration=workshop.calibration,
        folder=folder,
        progress=workshop.progress,
        measure=measure,
        train=_trainer(train, folder, method, workshop, original),
        export=functools.partial(_export, workshop, folder),
        decide_regions=workshop.decide_regions,
    )


def _trainer(
    train: Callable[..., Any], folder: Path, method: str, workshop: Workshop, original: SourceModel
) -> Any:
    def bound(module: nn.Module, table: Any, *, name: str = "train", **options: Any) -> Any:
        return train(
            module,
            workshop.training,
            table,
            folder=folder / name,
            progress=workshop.progress,
            teacher=original.module,
            recipe_folder=workshop.recipe.folder,
            resume=workshop.resume,
            label=method if name in {"train", method} else f"{method} {name}",
            **options,
        )

    return bound


def _export(workshop: Workshop, folder: Path, source: SourceModel) -> Path:
    return workshop.export(source, folder / f"exported-{rank()}" / "float32.onnx")


def _method(table: CompressTable) -> Callable[[SourceModel, Any, StepContext], StepResult]:
    """Return the function of a table's type."""
    match table:
        case PruneTable():
            from exporter.compress.prune.method import prune

            return prune
        case SparsifyTable():
            from exporter.compress.sparsify.method import sparsify

            return sparsify
        case FactorizeTable():
            from exporter.compress.factorize.method import factorize

            return factorize
        case StudentTable():
            from exporter.compress.student import student

            return student
        case DistillTable():
            from exporter.compress.distill.method import distill

            return distill
        case QatTable():
            from exporter.compress.qat.method import qat

            return qat


def _replay(kind: str) -> Callable[[Any, Mapping[str, Any], SourceModel], nn.Module]:
    import importlib

    replay: Callable[[Any, Mapping[str, Any], SourceModel], nn.Module]
    replay = importlib.import_module(f"exporter.compress.steps.{kind}").replay
    return replay

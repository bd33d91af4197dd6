"""SourceModel → SourceModel, by the recipe's `[[compress]]` steps: each measured as the file it exports to.

Here lives what all methods share: the order of steps, figures before and after, and what lets a killed build
go on where it was. The methods are modules of this package; a table's type selects its method.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import CompressionStep, ModelFigures, to_plain
from exporter.compress.base import StepResult, Workshop
from exporter.compress.memory import peak_rss_mb, restart_peak
from exporter.compress.saved import SavedStep, finished_edit, key_of, read_step, write_step
from exporter.errors import InputError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import CompressTable
from exporter.system.extras import require_installed
from exporter.training.distributed import is_main, share, wait

if TYPE_CHECKING:
    from torch import nn


_AFTER = "after"


@dataclass(frozen=True, slots=True)
class Compressed:
    """The model after all steps, what each did, and how to rebuild its structure from the original module."""

    source: SourceModel
    original: ModelFigures
    steps: tuple[CompressionStep, ...]
    edits: tuple[Mapping[str, Any], ...]


def compress(workshop: Workshop) -> Compressed:
    """Return the workshop's original after every step of the recipe; the given model is not changed.

    In a run of several processes all take part, and the main one's measurements count for all. Raises what
    the methods raise; finished steps stay in `workshop.folder` until the build has ended well.
    """
    current, tables = workshop.original, workshop.recipe.compress
    if current.module is None:
        raise UnsupportedError(
            "[[compress]] changes torch modules, and this model came as ONNX",
            fix="give the model as a factory with weights, or remove [[compress]]",
        )
    if not workshop.resume and is_main():
        shutil.rmtree(workshop.folder, ignore_errors=True)
    wait()
    places = [workshop.at("00-original")]
    original = figures = places[0].measure(current, _AFTER)
    done: list[SavedStep] = []
    key = ""
    for number, table in enumerate(tables, start=1):
        key = key_of(key, table, workshop, current)
        place = workshop.at(f"{number:02d}-{table.method}")
        with workshop.progress.step(f"compressing {number}/{len(tables)}: {table.method}"):
            step = _resumed(key, current, table, place) or _run(
                key, current, table, place, original=original, before=figures
            )
        current, figures = step.source, step.record.after
        places.append(place)
        done.append(step)
    timed = _timed_together(workshop, places, [original, *(step.record.after for step in done)])
    records = tuple(
        replace(step.record, original=timed[0], before=before, after=after)
        for step, before, after in zip(done, timed, timed[1:], strict=False)
    )
    return Compressed(current, timed[0], records, tuple(step.edit for step in done))


def _timed_together(
    workshop: Workshop, places: Sequence[Workshop], figures: Sequence[ModelFigures]
) -> list[ModelFigures]:
    """Return `figures` with latencies measured in turns: those of the steps were taken minutes apart."""

    def times() -> list[float]:
        folders = [place.folder / _AFTER for place in places]
        return workshop.meter.race(folders, workshop.original, workshop.folder)

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
        _, replay = _method(str(edit["kind"]))
        module = replay(module, placed, replace(source, module=module))
    return module.eval()


# --- one step --------------------------------------------------------------------------------------------


def _run(
    key: str,
    current: SourceModel,
    table: CompressTable,
    workshop: Workshop,
    *,
    original: ModelFigures,
    before: ModelFigures,
) -> SavedStep:
    started = time.monotonic()
    restart_peak()
    workshop.folder.mkdir(parents=True, exist_ok=True)
    method, _ = _method(table.method)
    result = method(current, table, workshop)
    peak = peak_rss_mb()
    after = workshop.measure(result.source, _AFTER)
    record = CompressionStep(
        method=table.method,
        settings=table.model_dump(mode="json", exclude_unset=True),
        original=original,
        before=before,
        changed=None if result.changed is None else workshop.measure(result.changed),
        after=after,
        trainings=tuple(to_plain(training) for training in result.trainings),
        details=dict(result.details or {}),
        notes=result.notes,
        seconds=time.monotonic() - started,
        peak_rss_mb=peak,
    )
    step = SavedStep(result.source, {"kind": table.method, **result.edit}, record)
    if is_main():
        write_step(workshop.folder, key, step)
    wait()
    return step


def _resumed(key: str, current: SourceModel, table: CompressTable, workshop: Workshop) -> SavedStep | None:
    """Return the finished step that an earlier, killed build left in the folder, if it is this very step."""
    if not workshop.resume:
        return None
    edit: Mapping[str, Any] | None = share(finished_edit(workshop.folder, key) if is_main() else None)
    if edit is None:
        return None
    _, replay = _method(table.method)
    module = replay(copy.deepcopy(current.module), edit, current)
    step = read_step(workshop.folder, current, module)
    workshop.progress.say(f"{table.method}: already done by the build that was interrupted")
    return step


_Method = Callable[[SourceModel, Any, Workshop], StepResult]
_Replay = Callable[[Any, Mapping[str, Any], SourceModel], "nn.Module"]


def _method(kind: str) -> tuple[_Method, _Replay]:
    """Return what does a step of this kind, and what gives a module the structure that such a step gave it."""
    match kind:
        case "prune":
            require_installed("pruning", ("torch_pruning",), extra="compress")
            from exporter.compress.prune.method import prune, replay

            return prune, replay
        case "sparsify":
            from exporter.compress.sparsify.method import replay, sparsify

            return sparsify, replay
        case "factorize":
            from exporter.compress.factorize.method import factorize, replay

            return factorize, replay
        case "student":
            from exporter.compress.student import replay, student

            return student, replay
        case "distill":
            from exporter.compress.distill.method import distill, replay

            return distill, replay
        case "qat":
            from exporter.compress.qat.method import qat, replay

            return qat, replay
    raise InputError(f"there is no compression method {kind!r}", fix="give the edits as the build wrote them")

"""What each family's network weighs, works and takes on this host, for one input; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import UnsupportedError
from exporter.model.source import SourceModel
from exporter.progress import Progress
from exporter.stages.measure import measure
from exporter.students.catalogue import Family, build_student
from exporter.students.figures import StudentFigures, count_student
from exporter.system.files import scratch_folder

_BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Wish:
    """What students are wanted: input `shape` with its batch (`None`: as published), classes, scales."""

    shape: tuple[int, ...] | None = None
    classes: int | None = None
    width: float = 1.0
    depth: float = 1.0


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One student: counted figures and, where it was measured, its float ONNX file and this host's median."""

    family: Family
    inputs: tuple[TensorSpec, ...]
    classes: int
    batch: int
    figures: StudentFigures
    file_bytes: int | None
    p50_ms: float | None


@dataclass(frozen=True, slots=True)
class Unsuited:
    """A family that does not take the input, and why."""

    family: Family
    reason: str


def survey(
    families: Sequence[Family], wish: Wish, *, latency: bool, progress: Progress
) -> tuple[tuple[Surveyed, ...], tuple[Unsuited, ...]]:
    """Return the figures of each of `families` for `wish`, and those that do not take such an input.

    With `latency` each is exported to float ONNX and run under onnxruntime, one thread, in a process of its
    own. Raises `UnsupportedError` (12) if none of the families takes the input.
    """
    found: list[Surveyed] = []
    unsuited: list[Unsuited] = []
    with progress.step("looking at students", len(families)) as advance:
        for number, family in enumerate(families, start=1):
            try:
                counted = _count(family, wish)
            except UnsupportedError as error:
                unsuited.append(Unsuited(family, error.cause))
            else:
                if latency:
                    with progress.step(f"exporting and timing {family.name}"):
                        counted = _measured(counted, wish)
                found.append(counted)
            advance(number)
    if not found:
        raise UnsupportedError(
            unsuited[0].reason
            if len(unsuited) == 1
            else f"no family takes an input of {_spelled(wish.shape or ())}",
            fix="images are 1x3x224x224, token ids 1x128, spectrograms 1x1x49x10",
        )
    return tuple(found), tuple(unsuited)


def _count(family: Family, wish: Wish) -> Surveyed:
    published = tuple(1 if isinstance(axis, str) else axis for axis in family.sample[0].shape)
    shape = wish.shape or published
    if len(shape) != len(published):
        raise UnsupportedError(
            f"family {family.name} takes {family.takes.value} of {len(published)} axes, and the "
            f"input has {len(shape)}",
            fix=f"give one such as {_spelled(published)}",
        )
    inputs = tuple(replace(spec, shape=(_BATCH, *shape[1:])) for spec in family.sample)
    classes = wish.classes or family.classes
    batch = shape[0]
    figures = count_student(
        family.name,
        inputs,
        _outputs(classes),
        axes={_BATCH: batch},
        width=wish.width,
        depth=wish.depth,
    )
    return Surveyed(family, inputs, classes, batch, figures, None, None)


def _outputs(classes: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("logits", "float32", (_BATCH, classes)),)


def _measured(student: Surveyed, wish: Wish) -> Surveyed:
    outputs, axes = _outputs(student.classes), {_BATCH: student.batch}
    module = build_student(
        student.family.name, student.inputs, outputs, axes=axes, width=wish.width, depth=wish.depth
    )
    example = {spec.name: _noise(spec.fixed(axes)) for spec in student.inputs}
    source = SourceModel(student.family.name, module, None, student.inputs, ("logits",), axes, example)
    with scratch_folder("students") as folder:
        measured = measure(source, folder)
    return replace(student, file_bytes=measured.size_bytes, p50_ms=measured.p50_ms)


def _noise(spec: TensorSpec) -> np.ndarray:
    """Return uniform noise for floats, ones for token ids and masks: what is in them changes no latency."""
    shape = tuple(axis for axis in spec.shape if isinstance(axis, int))
    if np.dtype(spec.dtype).kind == "f":
        return np.random.default_rng(0).uniform(0, 1, shape).astype(spec.dtype)
    return np.ones(shape, spec.dtype)


def _spelled(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

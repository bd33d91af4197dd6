"""What every compression method is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from exporter.artifacts import ModelFigures
from exporter.model.source import SourceModel
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe
from exporter.training.record import TrainingRecord

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from calibration.dataset import Dataset
    from exporter.recipe.compression import TrainingTable
    from exporter.training.data import TrainingData

Measure = Callable[[SourceModel], ModelFigures]
"""Exports a model and measures the file; see `exporter.stages.measure`."""


class Regions(Protocol):
    """What a static scheme quantises; `exporter.quantize.regions.Regions` is one."""

    @property
    def quantized(self) -> frozenset[str]:
        """Names of the nodes that compute on integers."""

    @property
    def grids(self) -> tuple[str, ...]:
        """Names of the values that pass through QuantizeLinear and DequantizeLinear, in graph order."""

    @property
    def same_grid(self) -> Mapping[str, str]:
        """Values on a grid that is another value's."""


class Train(Protocol):
    """How a step trains: `exporter.training.loop.train` with the build's data, folder and progress bound."""

    def __call__(
        self,
        module: nn.Module,
        table: TrainingTable,
        *,
        objective: nn.Module | None = None,
        name: str = "train",
        after_step: Callable[[int, int], bool | None] | None = None,
        predict: Callable[..., Any] | None = None,
    ) -> TrainingRecord:
        """Train `module` in place and leave its best weights in it, in eval mode.

        `objective` is an `nn.Module` that holds `module` (and what else is trained) and maps
        (inputs tuple, labels or None) to a scalar loss; default: the task loss with imitation of the original
        model as `table` says. `name` is unique within the step: its checkpoints live under it.
        `after_step(done, total)` runs after each optimiser step; weights are not kept as the best while it answers
        `False`. `predict` computes what the metric judges
        from the inputs (default: `module` itself).
        """


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a method may use. `original` is the model as the recipe loaded it (its module is not to be changed).

    `training` and `calibration` are `None` when the recipe gives no such data; `folder` is the step's own.
    `export` writes the tidy float ONNX of a model into `folder` and returns its path; `decide_regions` says what
    a static scheme will quantise in such a graph, given the patterns of what stays float.
    """

    recipe: Recipe
    original: SourceModel
    training: TrainingData | None
    calibration: Dataset | None
    folder: Path
    progress: Progress
    measure: Measure
    train: Train
    export: Callable[[SourceModel], Path]
    decide_regions: Callable[[ir.Model, Sequence[str]], Regions]


@dataclass(frozen=True, slots=True)
class StepResult:
    """A method's answer: the new model, how to rebuild its structure, and what is worth saying.

    `edit` is JSON data with a `kind`: `replay(module, edit)` of the method gives a module of the same structure
    from the module the step was given. `changed` is the model after the change and before training, if those
    differ; `details` goes into the report (ranks, channels, skipped layers with reasons).
    """

    source: SourceModel
    edit: Mapping[str, Any]
    changed: SourceModel | None = None
    trainings: tuple[TrainingRecord, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] | None = None

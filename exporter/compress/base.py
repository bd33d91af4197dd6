"""What every compression method is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import ModelFigures, to_plain
from exporter.model.source import SourceModel
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe
from exporter.stages.measure import Meter
from exporter.training.distributed import is_main, share
from exporter.training.fit import require_data
from exporter.training.job import AfterStep, TrainingJob
from exporter.training.loop import train
from exporter.training.record import TrainingRecord

if TYPE_CHECKING:
    from torch import nn

    from calibration.dataset import Dataset
    from exporter.recipe.compression import TrainingTable
    from exporter.training.data import TrainingData


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where models are compressed: one for all steps of a recipe, and `at` a folder for each.

    `original` is the model as the recipe loaded it (its module is not to be changed). `training` and `calibration`
    are `None` when the recipe gives no such data. `folder` survives a killed build; `resume` says to go on from it.
    """

    original: SourceModel
    recipe: Recipe
    training: TrainingData | None
    calibration: Dataset | None
    folder: Path
    progress: Progress
    meter: Meter
    resume: bool = False

    def at(self, name: str) -> Workshop:
        """Return this workshop with `name` in its folder for a folder."""
        return replace(self, folder=self.folder / name)

    def measure(self, source: SourceModel, place: str = "measuring") -> ModelFigures:
        """Return the figures of `source`, exported to `place` in the folder.

        In all processes they are the main one's: the others' cores are busy or other ones.
        """
        return ModelFigures(
            **share(to_plain(self.meter.measure(source, self.folder / place)) if is_main() else None)
        )

    def train(
        self,
        module: nn.Module,
        table: TrainingTable,
        label: str,
        *,
        objective: nn.Module | None = None,
        after_step: AfterStep | None = None,
    ) -> TrainingRecord:
        """Train `module` in place on the recipe's data and leave its best weights in it, in eval mode.

        `label` names the training to the user and its checkpoints, and is unique within a step; `objective` and
        `after_step` are those of `TrainingJob`, the teacher is the original model. Raises what `train` raises.
        """
        job = TrainingJob(
            module,
            require_data(self.training),
            table,
            self.original.module,
            objective,
            after_step,
            self.recipe.folder,
        )
        folder = self.folder / label.replace(" ", "-")
        return train(job, folder, self.progress, resume=self.resume, label=label)


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

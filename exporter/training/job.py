"""What a training is asked to do: all that its result follows from, and nothing of how it is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from exporter.recipe.compression import TrainingTable
from exporter.training.data import TrainingData

AfterStep = Callable[[int, int], "bool | None"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingJob:
    """`module` is trained in place on `data` as `table` says.

    `objective` maps (inputs tuple, labels or `None`) to a scalar loss and holds `module` with whatever else is
    trained; its parameters of two or more axes are decayed, others are not. Default: `TaskObjective` with
    `teacher`. `after_step(done, total)` runs after every optimiser step; while it returns `False` the model is not
    yet what it shall become, and such weights are never the best. Its state must follow from its arguments and the
    objective's state, or a resumed run would differ. `recipe_folder` is where the table's files of code lie.
    """

    module: nn.Module
    data: TrainingData
    table: TrainingTable
    teacher: nn.Module | None = None
    objective: nn.Module | None = None
    after_step: AfterStep | None = None
    recipe_folder: Path = Path()

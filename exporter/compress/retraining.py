"""How a step trains after its change, or why it cannot."""

from __future__ import annotations

from exporter.compress.base import Workshop
from exporter.errors import CalibrationError
from exporter.recipe.compression import CompressTable, TrainingTable, training_of


def recovery_of(step: CompressTable, workshop: Workshop) -> TrainingTable | None:
    """Return how `step` trains, or `None` for `train = false`.

    Raises `CalibrationError` (13) when it wants to train and the recipe gives no training data.
    """
    table = training_of(step, workshop.recipe.training)
    if table is not None and workshop.training is None:
        raise CalibrationError(
            f"{step.method} trains the model after its change, and the recipe gives no training data",
            fix='add [data] training = { source = "npz", path = "…", labels = "label" }, or train = false in the step',
        )
    return table

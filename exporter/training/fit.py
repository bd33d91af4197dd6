"""Whether a module, its data and its teacher fit together: told before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.errors import RecipeError, UnsupportedError
from exporter.model.source import flatten_outputs
from exporter.recipe.compression import TrainingTable
from exporter.training.data import TrainingData, take
from exporter.training.distributed import process_count
from exporter.training.objectives import evaluating, require_fitting_labels, require_same_shapes, settle_loss


def require_fit(
    module: nn.Module,
    data: TrainingData,
    table: TrainingTable,
    teacher: nn.Module | None,
    loss: Callable[..., Any] | None,
) -> None:
    """Raise now what would otherwise fail in the first step: outputs against labels, and against the teacher's."""
    try:
        module.train()
    except NotImplementedError as error:
        raise UnsupportedError(
            "an exported program cannot be trained: its graph has no training mode",
            fix="give the model's factory and weights instead of a .pt2 file, or write train = false",
        ) from error
    smallest = len(data) // math.ceil(len(data) / table.batch_size)
    if smallest < process_count():
        raise RecipeError(
            f"batches of {smallest} samples cannot be divided among {process_count()} processes",
            fix="raise training.batch_size, or launch fewer processes",
        )
    one = take(data.training, None, np.arange(1), data.inputs).inputs
    with torch.no_grad(), evaluating(module):
        outputs = flatten_outputs(module(*one))
        if teacher is not None:
            with evaluating(teacher):
                answers = flatten_outputs(teacher(*one))
            require_same_shapes([o.shape for o in outputs], [a.shape for a in answers])
    if not outputs or not any(output.is_floating_point() for output in outputs):
        raise UnsupportedError(
            "the model returns no tensor of floats, so nothing can be learned from its outputs",
            fix="return the logits, embeddings or values themselves",
        )
    if data.training_labels is not None:
        require_fitting_labels(outputs[0], data.training_labels, settle_loss(table, data, loss))

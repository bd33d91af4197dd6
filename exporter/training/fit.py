"""Whether a module, its data and its teacher fit together: told before the first step."""

from __future__ import annotations

import math

import numpy as np
import torch

from exporter.errors import CalibrationError, RecipeError, UnsupportedError
from exporter.model.source import flatten_outputs
from exporter.training.data import TrainingData, take
from exporter.training.distributed import process_count
from exporter.training.job import TrainingJob
from exporter.training.objectives import Loss, evaluating, require_fitting_labels, require_same_shapes


def require_data(data: TrainingData | None) -> TrainingData:
    """Return `data`; `CalibrationError` (13) if there is none of it."""
    if data is None or not len(data):
        raise CalibrationError(
            "there is no training data", fix="add [data] training = { … } to the recipe, or train = false"
        )
    return data


def require_fit(job: TrainingJob, loss: Loss) -> None:
    """Raise now what would otherwise fail in the first step: outputs against labels, and against the teacher's."""
    module, data, table = job.module, job.data, job.table
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
        if job.teacher is not None and job.objective is None:
            with evaluating(job.teacher):
                answers = flatten_outputs(job.teacher(*one))
            require_same_shapes([o.shape for o in outputs], [a.shape for a in answers])
    if not outputs or not any(output.is_floating_point() for output in outputs):
        raise UnsupportedError(
            "the model returns no tensor of floats, so nothing can be learned from its outputs",
            fix="return the logits, embeddings or values themselves",
        )
    if data.training_labels is not None:
        require_fitting_labels(outputs[0], data.training_labels, loss)

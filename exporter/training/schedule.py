"""In what order samples come, how fast weights move, and which of them decay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.errors import UnsupportedError
from exporter.recipe.compression import TrainingTable


def rate_factor(table: TrainingTable, done: int, total: int) -> float:
    """Return the share of the learning rate for the step after `done`: linear warm-up, then the table's schedule."""
    warmup = min(math.ceil(table.warmup * total), total - 1)
    if done < warmup:
        return (done + 1) / (warmup + 1)
    progress = (done - warmup) / max(1, total - warmup)
    match table.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def divided(order: np.ndarray, batch_size: int, accumulate: int) -> list[list[np.ndarray]]:
    """Return `order` as optimiser steps of up to `accumulate` batches, whose sizes differ by at most one.

    No batch is a small remainder: normalisation over a few samples would be noise.
    """
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def make_optimizer(objective: nn.Module, table: TrainingTable) -> torch.optim.Optimizer:
    """Return the table's optimiser; only tensors of two or more axes decay: biases, gains and scales are no capacity."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if not trained:
        raise UnsupportedError(
            "the model has no parameter that can be trained", fix="write train = false in this step"
        )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": table.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if table.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=table.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=table.learning_rate)

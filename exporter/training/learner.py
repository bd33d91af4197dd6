"""How one step moves weights: gradients of batches, gathered over processes, clipped, and given to the optimiser."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exporter.recipe.compression import TrainingTable
from exporter.training.data import Batch
from exporter.training.distributed import process_count
from exporter.training.schedule import make_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class Learner:
    """An objective with its optimiser, on this process's device.

    `wrapped` is the objective as it is called in training: one of several processes exchanges gradients.
    """

    objective: nn.Module
    accelerator: Accelerator
    wrapped: nn.Module
    optimizer: Any

    @classmethod
    def of(cls, objective: nn.Module, table: TrainingTable, accelerator: Accelerator) -> Learner:
        """Return what learns `objective`; raises `UnsupportedError` (12) where no parameter can be trained."""
        wrapped, optimizer = accelerator.prepare(objective, make_optimizer(objective, table))
        return cls(objective, accelerator, wrapped, optimizer)

    @property
    def scaler(self) -> Any:
        """What scales losses in half precision; `None` in others."""
        return self.accelerator.scaler

    def begin_step(self, rate: float) -> None:
        """Forget the last step's gradients; this one moves weights by the learning rate `rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()

    def add_gradient(self, batch: Batch, *, rows: int, last: bool) -> Tensor:
        """Add the gradient of `batch`, part of a step over `rows` rows, and return its summed loss.

        Processes exchange gradients with the `last` batch of a step.
        """
        own = len(batch.inputs[0])
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            loss: Tensor = self.wrapped(batch.inputs, batch.labels)
            # Processes' gradients are averaged with equal weight; their rows may differ by one.
            self.accelerator.backward(loss * (own * process_count() / rows))
        return loss.detach().float() * own

    def sum_over_processes(self, loss: Tensor, *, vote: bool) -> tuple[float, float]:
        """Return the loss of all processes, and how many `vote`, in one exchange."""
        if process_count() == 1:
            return float(loss), float(vote)
        pair = torch.stack((loss, torch.tensor(float(vote), device=loss.device)))
        total, votes = self.accelerator.reduce(pair, reduction="sum").tolist()
        return total, votes

    def clip(self, norm: float | None) -> float:
        """Shorten the gradient to `norm` and return how long it was."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return float(self.accelerator.clip_grad_norm_(parameters, math.inf if norm is None else norm))

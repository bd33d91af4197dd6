"""What a training minimises: the task's loss, and the imitation of a teacher.

An objective is an `nn.Module` that holds what is trained and maps (inputs, labels or `None`) to a scalar, the
mean over the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import CalibrationError, InputError, UnsupportedError
from exporter.model.source import flatten_outputs
from exporter.recipe.compression import TrainingTable
from exporter.training.data import TrainingData
from exporter.training.user_function import user_loss

Loss = Literal["cross_entropy", "mse"] | Callable[[Any, Tensor], Tensor]
IGNORED_LABEL = -100
"""Positions with this label take no part in the cross-entropy, as everywhere in torch."""


class Teacher:
    """A network that is asked and never trained: evaluation mode, no gradients, its parameters not ours.

    It is no `nn.Module`, so that a student's checkpoints, devices and processes know nothing of it. On the CPU
    it is the given module itself; on another device a copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._given = module

    @property
    def module(self) -> nn.Module:
        """The module where it is now; hooks are put on this one."""
        return self._module

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Return what the teacher says to `inputs`, on their device."""
        self.follow(inputs)
        with torch.no_grad(), evaluating(self._module):
            return self._module(*inputs)

    def follow(self, inputs: Sequence[Tensor]) -> None:
        """Be on the device of `inputs`."""
        here = next(self._module.parameters(), torch.empty(0)).device
        if inputs and inputs[0].device != here:
            self._module = copy.deepcopy(self._given).to(inputs[0].device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run the block with `module` in evaluation mode, each part of it back in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules() if part.training]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


class TaskObjective(nn.Module):
    """(1 − teacher) · task loss + teacher · imitation; one of the two alone where the other cannot be had.

    The task loss is cross-entropy for integer labels, mean squared error for others, or the user's callable on
    the module's own result. Imitation is `imitation_loss` at the table's temperature.
    """

    def __init__(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        table: TrainingTable,
        loss: Loss,
        *,
        labelled: bool,
    ) -> None:
        super().__init__()
        self.module = module
        self.loss = loss
        self.label_smoothing = table.label_smoothing
        self.temperature = table.temperature
        self.share = teacher_share(table, has_teacher=teacher is not None, labelled=labelled)
        self.teacher = Teacher(teacher) if teacher is not None and self.share > 0 else None

    def forward(self, inputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """Return the loss of a batch, a scalar."""
        result = self.module(*inputs)
        parts = []
        if labels is not None and self.share < 1:
            task = task_loss(result, labels, self.loss, label_smoothing=self.label_smoothing)
            parts.append((1 - self.share) * task)
        if self.teacher is not None:
            soft = self.loss == "cross_entropy"
            parts.append(
                self.share * imitation_loss(result, self.teacher(inputs), self.temperature, soft=soft)
            )
        return torch.stack(parts).sum()


def teacher_share(table: TrainingTable, *, has_teacher: bool, labelled: bool) -> float:
    """Return the share of imitation in the loss, 0..1: all of it without labels, none without a teacher.

    Raises `CalibrationError` when there is neither.
    """
    if labelled:
        return table.teacher if has_teacher else 0.0
    if not has_teacher:
        raise CalibrationError(
            "the training data has no labels, and there is no teacher to imitate",
            fix='name the labels: [data] training = { …, labels = "label" }',
        )
    return 1.0


def settle_loss(table: TrainingTable, data: TrainingData, recipe_folder: Path) -> Loss:
    """Return what `table.loss` means for `data`: "auto" is cross-entropy for integer labels, else mean squared error.

    Without labels "auto" is cross-entropy: outputs `[N, C]` count as logits. For embeddings write
    `loss = "mse"`, which makes imitation a matter of distances. A file of the user's is relative to `recipe_folder`;
    raises `InputError` (10) for one that gives no callable.
    """
    own = user_loss(table, recipe_folder)
    if own is not None:
        return own
    if table.loss == "auto":
        labels = data.training_labels
        return "cross_entropy" if labels is None or labels.dtype.kind in "iu" else "mse"
    return "mse" if table.loss == "mse" else "cross_entropy"


def task_loss(result: Any, labels: Tensor, loss: Loss, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of a module's own `result` against `labels`; only the first output is judged.

    Cross-entropy wants classes on axis 1 (`[N, C]`, `[N, C, …]`) or last (`[N, …, C]`), whichever leaves the
    labels' shape. Whatever goes wrong in a user's callable is an `InputError`.
    """
    if not isinstance(loss, str):
        return _users_loss(loss, result, labels)
    output = flatten_outputs(result)[0].float()
    if loss == "mse":
        return functional.mse_loss(output.reshape(labels.shape), labels.to(output.dtype))
    if class_axis(output.shape, labels.shape) == output.ndim - 1:
        output, labels = output.flatten(0, -2), labels.flatten()
    return functional.cross_entropy(
        output, labels.long(), label_smoothing=label_smoothing, ignore_index=IGNORED_LABEL
    )


def _users_loss(loss: Callable[[Any, Tensor], Tensor], result: Any, labels: Tensor) -> Tensor:
    value = loss(result, labels)
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = (
            f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        )
        raise InputError(
            f"training.loss returned {found}, not a scalar tensor", fix="return the mean over the batch"
        )
    return value


def class_axis(output: Sequence[int], labels: Sequence[int]) -> int | None:
    """Return the axis of an output's shape that holds classes, given the labels' shape; `None` if there is none."""
    shape = list(output)
    if len(shape) != len(labels) + 1 or len(shape) < 2:
        return None
    for axis in (1, len(shape) - 1):
        if shape[:axis] + shape[axis + 1 :] == list(labels):
            return axis
    return None


def imitation_loss(student: Any, teacher: Any, temperature: float, *, soft: bool) -> Tensor:
    """Return how far a student's result is from its teacher's, the mean over outputs.

    With `soft`, a single output `[N, C]` of logits is compared as Hinton et al. 2015 (arXiv:1503.02531) do:
    T² · KL(teacher ‖ student) at temperature T, the mean over rows. All other outputs of floats: mean squared
    error over the variance of the teacher's.
    """
    pairs = list(zip(flatten_outputs(student), flatten_outputs(teacher), strict=True))
    losses = []
    for ours, theirs in pairs:
        if not ours.is_floating_point():
            continue
        if soft and ours.ndim == 2 and ours.shape[-1] > 1 and len(pairs) == 1:
            losses.append(soft_target_loss(ours, theirs, temperature))
        else:
            losses.append(scaled_mse(ours.float(), theirs.float()))
    return torch.stack(losses).mean()


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)) over the last axis, the mean over the others."""
    ours = functional.log_softmax(student.float() / temperature, dim=-1).flatten(0, -2)
    theirs = functional.log_softmax(teacher.float() / temperature, dim=-1).flatten(0, -2)
    divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def scaled_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error over the variance of `teacher`: 0 is equal, 1 is no better than its mean."""
    return functional.mse_loss(student, teacher) / teacher.var(correction=0).clamp_min(1e-6)


# --- before the first step -------------------------------------------------------------------------------


def require_same_shapes(student: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> None:
    """Raise `UnsupportedError` naming both unless two networks' outputs agree in number and shape."""
    if [list(shape) for shape in student] != [list(shape) for shape in teacher]:
        raise UnsupportedError(
            f"the student's outputs have shapes {_spell(student)}, its teacher's {_spell(teacher)}",
            fix="give the student the teacher's outputs: as many, in the same order, with as many classes",
        )


def _spell(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes) or "(no tensor)"


def require_fitting_labels(output: Tensor, labels: np.ndarray, loss: Loss) -> None:
    """Raise `CalibrationError` unless `labels` `[samples, …]` fit the first output of a batch of one row.

    Names the shapes, or the first label that is no class.
    """
    if not isinstance(loss, str):
        return
    one = (1, *labels.shape[1:])
    if loss == "mse":
        if output.numel() != int(np.prod(one)):
            raise CalibrationError(
                f"labels are {list(labels.shape[1:])} a sample, the model's first output {list(output.shape[1:])}",
                fix="store one number for each number the model gives, or write a loss of your own",
            )
        return
    axis = class_axis(output.shape, one)
    if labels.dtype.kind not in "iu" or axis is None:
        raise CalibrationError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}; cross-entropy wants class numbers for outputs "
            f"{list(output.shape)}",
            fix='store one class number per sample (or position), or write loss = "mse" or a loss of your own',
        )
    count = output.shape[axis]
    bad = (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= count))
    if bad.any():
        place = [int(index) for index in np.argwhere(bad)[0]]
        raise CalibrationError(
            f"label {labels[tuple(place)]} of training sample {place[0]} is no class of a model with {count}",
            fix=f"number the classes 0 to {count - 1}",
        )

"""What a training is shown: the recipe's own sets as batches of tensors, in an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from exporter.artifacts import TensorSpec
from exporter.errors import CalibrationError
from exporter.judging.metrics import Metric

if TYPE_CHECKING:
    from calibration.dataset import Dataset

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What trains and what chooses the best epoch, held in memory.

    `training` and `validation` map each input of the model to an array `[samples, …]` of its dtype; labels are
    `[samples, …]` or `None`. `metric` judges validation outputs as it judges artifacts (`None` without labels:
    then the loss does), under the names in `outputs`, or `output_0`, `output_1`, … where the recipe names none.
    """

    inputs: tuple[TensorSpec, ...]
    training: Mapping[str, np.ndarray]
    training_labels: np.ndarray | None
    validation: Mapping[str, np.ndarray]
    validation_labels: np.ndarray | None
    metric_name: str | None
    metric: Metric | None
    fingerprint: str
    outputs: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether a task loss can be computed."""
        return self.training_labels is not None

    def __len__(self) -> int:
        return len(next(iter(self.training.values())))


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: `inputs` in the order of `forward`'s arguments, `labels` if there are any."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None


def gather(
    training: Dataset,
    validation: Dataset | None,
    inputs: tuple[TensorSpec, ...],
    *,
    metric_name: str | None,
    metric: Metric | None,
    outputs: tuple[str, ...] = (),
    seed: int = 0,
) -> TrainingData:
    """Return both sets as arrays; without `validation` every tenth sample (by `seed`) is held out of training.

    Raises `CalibrationError` when there are too few samples to hold any out, when only one of two given sets
    has labels, or when samples of one set differ in shape.
    """
    arrays, labels = _stacked(training, inputs, "training"), training.labels
    if validation is not None:
        if (labels is None) != (validation.labels is None):
            raise CalibrationError(
                "only one of data.training and data.validation has labels",
                fix='name the labels in both, e.g. labels = "label", or in neither',
            )
        held, held_labels = _stacked(validation, inputs, "validation"), validation.labels
        fingerprint = f"{training.fingerprint}-{validation.fingerprint}"
    else:
        count = max(1, int(len(training) * HELD_OUT_SHARE))
        if len(training) < 2:
            raise CalibrationError(
                f"data.training has {len(training)} samples", fix="give at least two, better hundreds"
            )
        order = np.random.default_rng(seed).permutation(len(training))
        taken, rest = np.sort(order[:count]), np.sort(order[count:])
        held = {name: array[taken] for name, array in arrays.items()}
        arrays = {name: array[rest] for name, array in arrays.items()}
        held_labels = None if labels is None else labels[taken]
        labels = None if labels is None else labels[rest]
        fingerprint = f"{training.fingerprint}-{seed}"
    usable = metric if held_labels is not None else None
    name = metric_name if usable else None
    return TrainingData(inputs, arrays, labels, held, held_labels, name, usable, fingerprint, outputs)


def _stacked(dataset: Dataset, inputs: tuple[TensorSpec, ...], role: str) -> dict[str, np.ndarray]:
    columns: dict[str, list[np.ndarray]] = {spec.name: [] for spec in inputs}
    for number, sample in enumerate(dataset):
        for spec in inputs:
            array = sample[spec.name]
            if columns[spec.name] and array.shape != columns[spec.name][0].shape:
                raise CalibrationError(
                    f"{role} sample {number}: input {spec.name!r} is {list(array.shape)}, the first is "
                    f"{list(columns[spec.name][0].shape)}",
                    fix="pad or cut all training samples to one shape",
                )
            columns[spec.name].append(array)
    # A sample carries its own batch axis of one (see calibration.dataset).
    return {
        spec.name: np.concatenate(columns[spec.name])
        if columns[spec.name] and columns[spec.name][0].ndim == len(spec.shape) and spec.shape
        else np.stack(columns[spec.name])
        for spec in inputs
    }


def take(
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    rows: np.ndarray,
    inputs: tuple[TensorSpec, ...],
) -> Batch:
    """Return the samples `rows` as a batch on the CPU."""
    return Batch(
        tuple(torch.from_numpy(np.ascontiguousarray(arrays[spec.name][rows])) for spec in inputs),
        None if labels is None else torch.from_numpy(np.ascontiguousarray(labels[rows])),
    )


def in_order(
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    inputs: tuple[TensorSpec, ...],
    batch_size: int,
) -> Iterator[Batch]:
    """Yield all samples in their order, in batches."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch_size):
        yield take(arrays, labels, np.arange(start, min(start + batch_size, count)), inputs)


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order of `count` samples in `epoch`: a permutation that depends on `seed` and `epoch` alone."""
    return np.random.default_rng((seed, epoch)).permutation(count)

"""What a network is shown, and when: every process its share of each batch, augmented, on its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from exporter.system.user_code import UserCallable
from exporter.training.data import Batch, epoch_order, take
from exporter.training.distributed import process_count, rank
from exporter.training.job import TrainingJob
from exporter.training.random_state import generator_of
from exporter.training.schedule import divided
from exporter.training.user_function import augmented, user_augment


@dataclass(frozen=True, slots=True)
class Feed:
    """The training set of `job` as batches on `device`; `augment` is the user's function, if the table names one."""

    job: TrainingJob
    device: torch.device
    augment: UserCallable | None

    @classmethod
    def of(cls, job: TrainingJob, device: torch.device) -> Feed:
        """Return the feed of `job`; raises `InputError` (10) for an augmentation that cannot be called."""
        return cls(job, device, user_augment(job.table, job.recipe_folder))

    def steps(self, epoch: int) -> Sequence[Sequence[np.ndarray]]:
        """Return the rows of every optimiser step of `epoch`, one array a batch, of all processes together."""
        order = epoch_order(len(self.job.data), seed=self.job.table.seed, epoch=epoch)
        return divided(order, self.job.table.batch_size, self.job.table.accumulate)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's share of every batch of `epoch`."""
        rows = [batch for step in self.steps(epoch) for batch in step]
        return (self.batch(chosen, epoch, number) for number, chosen in enumerate(rows))

    def batch(self, rows: np.ndarray, epoch: int, number: int) -> Batch:
        """Return this process's share of `rows`, the `number`-th batch of `epoch`."""
        data, table = self.job.data, self.job.table
        mine = np.array_split(rows, process_count())[rank()]
        batch = take(data.training, data.training_labels, mine, data.inputs)
        inputs = batch.inputs
        if self.augment is not None:
            named = {spec.name: tensor for spec, tensor in zip(data.inputs, inputs, strict=True)}
            generator = generator_of(table.seed, epoch, number, rank())
            named = augmented(self.augment, named, generator)
            inputs = tuple(named[spec.name] for spec in data.inputs)
        return Batch(
            tuple(tensor.to(self.device) for tensor in inputs),
            None if batch.labels is None else batch.labels.to(self.device),
        )

"""How good a network is on the validation set: the recipe's metric and the objective's loss, by all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn

from exporter.errors import CalibrationError
from exporter.judging.metrics import Outputs
from exporter.model.source import flatten_outputs
from exporter.training.data import TrainingData, take
from exporter.training.distributed import gather, gather_bytes, is_main, process_count, rank, share
from exporter.training.job import TrainingJob
from exporter.training.objectives import evaluating


@dataclass(frozen=True, slots=True)
class Verdict:
    """The metric on the validation set (minus the loss where there is none), and the mean loss."""

    score: float
    loss: float

    def beats(self, other: Verdict | None) -> bool:
        """Whether this one is better: a higher score, or an equal one at a lower loss."""
        return other is None or (self.score, -self.loss) > (other.score, -other.loss)


def judge(job: TrainingJob, objective: nn.Module, device: torch.device) -> Verdict:
    """Return the verdict on `job.module` and its `objective` in evaluation mode, the same in every process.

    Each takes a share of rows. Raises what the metric raises, and `CalibrationError` when there is nothing to judge
    on.
    """
    _agree_on_buffers(objective)
    data, batch_size = job.data, job.table.batch_size
    count = len(next(iter(data.validation.values())))
    if count == 0:
        raise CalibrationError("the validation set has 0 samples", fix="give it some, or leave it out")
    rows = np.array_split(np.arange(count), process_count())[rank()]
    loss, outputs = 0.0, list[list[np.ndarray]]()
    with torch.no_grad(), evaluating(objective):
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            batch = take(data.validation, data.validation_labels, chosen, data.inputs)
            inputs = tuple(tensor.to(device) for tensor in batch.inputs)
            labels = None if batch.labels is None else batch.labels.to(device)
            loss += float(objective(inputs, labels)) * len(chosen)
            if data.metric is not None:
                outputs.extend(_by_sample(job.module, inputs))
    mean = sum(float(part) for part in gather(loss)) / count
    return Verdict(-mean if data.metric is None else _score(data, outputs), mean)


def _agree_on_buffers(objective: nn.Module) -> None:
    """Give every process the main one's buffers (a normalisation's statistics differ by what each has seen)."""
    if process_count() > 1:
        for buffer in objective.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _by_sample(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[np.ndarray]]:
    """Return each sample's outputs, every one with a batch axis of one."""
    rows = len(inputs[0])
    outputs = flatten_outputs(module(*inputs))
    if rows > 1 and not all(tensor.ndim and len(tensor) == rows for tensor in outputs):
        # An output without a batch axis speaks of one sample at a time.
        return [
            _by_sample(module, tuple(tensor[row : row + 1] for tensor in inputs))[0] for row in range(rows)
        ]
    arrays = [
        tensor.detach().float().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
        for tensor in outputs
    ]
    if rows == 1:
        return [arrays]
    return [[array[row : row + 1] for array in arrays] for row in range(rows)]


def _score(data: TrainingData, outputs: list[list[np.ndarray]]) -> float:
    """Return the metric over all processes' outputs, computed by the main one."""
    if process_count() > 1:
        mine = {
            f"{row}/{number}": np.ascontiguousarray(array)
            for row, sample in enumerate(outputs)
            for number, array in enumerate(sample)
        }
        parts = [load_arrays(part) for part in gather_bytes(save_arrays(mine))]
        outputs = [sample for part in parts for sample in _samples_of(part)]
    score = None
    if is_main() and data.metric is not None and data.validation_labels is not None:
        named: Sequence[Outputs] = [
            dict(zip(_names(data, len(sample)), sample, strict=True)) for sample in outputs
        ]
        score = float(data.metric(named, data.validation_labels))
    return float(share(score))


def _samples_of(arrays: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    samples: dict[int, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        row, _, number = name.partition("/")
        samples.setdefault(int(row), {})[int(number)] = array
    return [[samples[row][number] for number in sorted(samples[row])] for row in sorted(samples)]


def _names(data: TrainingData, count: int) -> list[str]:
    if len(data.outputs) == count:
        return list(data.outputs)
    return [f"output_{number}" for number in range(count)]

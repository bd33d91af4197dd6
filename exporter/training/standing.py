"""Where a training stands, and which training it is: everything that a checkpoint has to hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exporter.system.user_code import source_digest
from exporter.training.checkpoint import Checkpoint, raw_bytes
from exporter.training.distributed import process_count
from exporter.training.job import TrainingJob
from exporter.training.learner import Learner


@dataclass(slots=True)
class Standing:
    """Where a training stands: all of it that is not tensors. Plain data, changed by the loop alone.

    `epoch`, `position` and `steps` count finished epochs, steps in this epoch, and all steps; `loss_sum` is over
    `loss_rows` rows of this epoch; `before`, `last` and `best` are verdicts; `stale` counts epochs without a
    score above `top_score`; `seconds` are those of earlier, interrupted runs.
    """

    epoch: int = 0
    position: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    losses: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    best_epoch: int = 0
    top_score: float | None = None
    stale: int = 0
    seconds: float = 0.0


def state_of(objective: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer of `objective` once, also those that its state dict leaves out."""
    return [*objective.named_parameters(), *objective.named_buffers()]


def load_state(objective: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into the tensors of `objective`, which keep their device and layout."""
    with torch.no_grad():
        for name, tensor in state_of(objective):
            saved = state[name]
            if tensor.shape == saved.shape:
                tensor.copy_(saved)
            else:  # a buffer that grew while it observed
                tensor.data = saved.to(tensor.device)


def pack(
    standing: Standing, best: Mapping[str, Tensor], learner: Learner, generators: Sequence[Any]
) -> Checkpoint:
    """Return all of it as tensors and JSON data; nothing is copied."""
    tensors = {f"state.{name}": tensor.detach() for name, tensor in state_of(learner.objective)}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    scalars: dict[str, Any] = {}
    for index, entries in learner.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    facts = {
        "standing": asdict(standing),
        "optimizer": scalars,
        "scaler": None if learner.scaler is None else learner.scaler.state_dict(),
        "generators": list(generators),
    }
    return Checkpoint(tensors, facts)


def unpack(checkpoint: Checkpoint, learner: Learner) -> tuple[Standing, dict[str, Tensor]]:
    """Put `checkpoint` back into `learner`; return the standing and the best state."""
    optimizer = learner.optimizer
    load_state(learner.objective, _under("state.", checkpoint.tensors))
    entries: dict[int, dict[str, Any]] = {}
    values = {**_under("optimizer.", checkpoint.tensors), **checkpoint.facts["optimizer"]}
    for name, value in values.items():
        index, _, entry = name.partition(".")
        entries.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    if learner.scaler is not None:
        learner.scaler.load_state_dict(checkpoint.facts["scaler"])
    return Standing(**checkpoint.facts["standing"]), _under("best.", checkpoint.tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def training_key(job: TrainingJob, objective: nn.Module) -> str:
    """Return the digest of all that a training's result follows from; how often it is saved is none of that.

    `objective` is the job's, or the default of a job that gives none.
    """
    table = job.table
    callables = [
        reference
        for reference in (table.loss, table.augment, table.function)
        if reference and ":" in reference
    ]
    facts = {
        "table": table.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "data": job.data.fingerprint,
        "processes": process_count(),
        "objective": [
            type(objective).__qualname__,
            getattr(objective, "fingerprint", ""),
            state_digest(objective),
        ],
        "teacher": None if job.teacher is None else state_digest(job.teacher),
        "code": [source_digest(reference, job.recipe_folder) for reference in callables],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def state_digest(module: nn.Module) -> str:
    """Return the SHA-256 of every parameter and buffer: names, dtypes, shapes and bytes."""
    state = hashlib.sha256()
    for name, tensor in state_of(module):
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(raw_bytes(tensor))
    return state.hexdigest()

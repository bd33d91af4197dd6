"""One training under way: where it stands, how good it is, what is best so far, and what survives a kill."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from exporter.progress import Progress
from exporter.training.checkpoint import clear, decode, newest, read_checkpoint, write_checkpoint
from exporter.training.distributed import gather, is_main, process_count, rank, share, share_bytes
from exporter.training.divergence import diverged, last_good
from exporter.training.job import TrainingJob
from exporter.training.judging import Verdict, judge
from exporter.training.learner import Learner
from exporter.training.random_state import random_state, restore_random_state
from exporter.training.record import TrainingRecord
from exporter.training.schedule import rate_factor
from exporter.training.standing import Standing, load_state, pack, state_of, unpack

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(slots=True)
class Course:
    """The training of `objective` as `job` asks; its checkpoints, of the training `key`, lie in `folder`.

    `best` is the state of the objective at `standing.best`, on the CPU; `label` names the training to the user.
    """

    job: TrainingJob
    objective: nn.Module
    accelerator: Accelerator
    folder: Path
    progress: Progress
    label: str
    key: str
    standing: Standing = field(default_factory=Standing)
    best: dict[str, Tensor] = field(default_factory=dict)
    resumed: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        """How many optimiser steps all epochs have."""
        table = self.job.table
        batches = math.ceil(len(self.job.data) / table.batch_size)
        return table.epochs * math.ceil(batches / table.accumulate)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.job.table.learning_rate * rate_factor(self.job.table, self.standing.steps, self.total)

    @property
    def seconds(self) -> float:
        """How long the training has taken, interrupted runs included."""
        return self.standing.seconds + time.monotonic() - self.started

    # --- how good it is ----------------------------------------------------------------------------------

    def judge(self) -> Verdict:
        """Return the verdict on the weights as they are; `GateError` (14) when their loss is no number."""
        verdict = judge(self.job, self.objective, self.accelerator.device)
        self.require_finite(verdict.loss, "validation loss", max(0, self.standing.position - 1))
        return verdict

    def require_finite(self, value: float, what: str, number: int) -> None:
        """Raise `GateError` (14) if `value` of this epoch's step `number` is no number; the best weights are back."""
        if math.isfinite(value):
            return
        self.restore_best()
        kept = last_good(self.folder, self.standing.steps, remove=is_main())
        where = f"epoch {self.standing.epoch + 1}, step {number + 1} (learning rate {self.rate:.3g})"
        raise diverged(f"training {self.label}: the {what} became {value} in {where}", self.job.table, kept)

    def keep(self, verdict: Verdict, *, epoch: int) -> None:
        """Take the weights as they are, after `epoch`, for the best."""
        self.standing.best, self.standing.best_epoch = asdict(verdict), epoch
        top = self.standing.top_score
        self.standing.top_score = verdict.score if top is None else max(top, verdict.score)
        # Piece by piece, so that there are never two copies of the best.
        for name, tensor in state_of(self.objective):
            kept = self.best.get(name)
            if kept is not None and kept.shape == tensor.shape:
                kept.copy_(tensor.detach())
            else:
                self.best[name] = tensor.detach().to("cpu", copy=True)

    def restore_best(self) -> None:
        """Put the best weights back."""
        if self.best:
            load_state(self.objective, self.best)
        elif self.standing.epoch:  # no epoch was allowed to be the best: the last one is what there is
            self.standing.best, self.standing.best_epoch = self.standing.last, self.standing.epoch

    def record(self, stopped: str) -> TrainingRecord:
        """Return what the training says of itself; `stopped` is why it ended."""
        standing = self.standing
        best = standing.best or standing.last
        return TrainingRecord(
            metric=self.job.data.metric_name or "minus the loss",
            before=standing.before["score"],
            best=best["score"],
            best_epoch=standing.best_epoch,
            epochs=standing.epoch,
            losses=tuple(standing.losses),
            stopped=stopped,
            seconds=self.seconds,
            resumed=self.resumed,
            processes=process_count(),
        )

    # --- what survives a kill ----------------------------------------------------------------------------

    def save(self, learner: Learner) -> None:
        """Write where the training stands; every process contributes the state of its generators."""
        generators = gather(random_state(self.accelerator.device))
        if is_main():
            standing = replace(self.standing, seconds=self.seconds)
            packed = pack(standing, self.best, learner, generators)
            write_checkpoint(self.folder, standing.steps, self.key, packed)

    def go_on(self, learner: Learner, *, resume: bool) -> bool:
        """Load the newest whole checkpoint of this training, if the run is to be resumed and there is one."""
        path = newest(self.folder, self.key, self.progress.say) if resume and is_main() else None
        if not share(path is not None):
            if is_main():  # numbers of another training's checkpoints would outrank ours
                clear(self.folder)
            return False
        if process_count() > 1:  # the main process's file may lie on no other node
            found = decode(share_bytes(b"" if path is None else path.read_bytes()))
        else:
            found = read_checkpoint(path or self.folder)
        self.standing, self.best = unpack(found, learner)
        restore_random_state(found.facts["generators"][rank()], self.accelerator.device)
        self.resumed = True
        self.progress.say(f"training {self.label} goes on after step {self.standing.steps} of {self.total}")
        return True

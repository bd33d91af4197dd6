"""One training loop for every method: on one CPU, one GPU, or as many processes as were launched.

It knows nothing of what it trains: an objective maps a batch to a loss. It can be killed at any moment and
goes on from its last checkpoint to the same bits. Two trainings of the same module, data, table and number of
processes on one machine give the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from exporter.errors import ResourceError
from exporter.model.state_dict import require_sane_weights
from exporter.progress import Progress, Silence
from exporter.system.user_code import UserCallable
from exporter.training.checkpoint import clear
from exporter.training.course import Course
from exporter.training.data import Batch
from exporter.training.distributed import is_main, make_accelerator, share, wait
from exporter.training.feed import Feed
from exporter.training.fit import require_data, require_fit
from exporter.training.job import TrainingJob
from exporter.training.judging import Verdict
from exporter.training.learner import Learner
from exporter.training.objectives import TaskObjective, settle_loss
from exporter.training.random_state import repeatable
from exporter.training.record import TrainingRecord
from exporter.training.standing import training_key
from exporter.training.user_function import Session, run_function, user_function

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def train(
    job: TrainingJob, folder: Path, progress: Progress, *, resume: bool = False, label: str | None = None
) -> TrainingRecord:
    """Train `job.module` in place and return the record; it ends on the CPU, in eval mode, with its best weights.

    Best is the highest metric on the validation set (of equals, the lowest loss), over the epochs and, without
    `job.after_step`, the weights as given.

    `folder` belongs to this training alone: checkpoints live there and go when it has ended well. With
    `resume` it goes on from the newest whole one of the same training. In a run of several processes all of
    them call this; each optimiser step sees the rows it would see in one process. `label` names it in progress.

    Raises `CalibrationError` (13) without data, without labels and teacher, or for labels that do not fit,
    `UnsupportedError` (12) for a teacher of other outputs or a module that cannot train, `GateError` (14) when
    the loss is no longer finite, `InputError` (10) for the user's callables, `ResourceError` (15).
    """
    module, data, table, objective = job.module, require_data(job.data), job.table, job.objective
    accelerator = make_accelerator(table.precision)
    loss = settle_loss(table, data, job.recipe_folder)
    require_fit(job, loss)
    if objective is None:
        objective = TaskObjective(module, job.teacher, table, loss, labelled=data.labelled)
    try:
        with repeatable(table.seed, accelerator.device):
            course = Course(
                job=job,
                objective=objective,
                accelerator=accelerator,
                folder=folder,
                progress=progress if is_main() else Silence(),
                label=label or folder.name,
                key=share(training_key(job, objective)),
            )
            return _carry_out(course, resume=resume)
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            raise
        raise ResourceError(
            f"memory ran out in a training with batches of {table.batch_size}",
            fix=f"halve training.batch_size and double training.accumulate (it is {table.accumulate})",
        ) from error
    finally:
        objective.to("cpu")
        module.to("cpu").eval()


def _carry_out(course: Course, *, resume: bool) -> TrainingRecord:
    """Train from the start or from a checkpoint to the end, and clean up."""
    job, device = course.job, course.accelerator.device
    feed, function = Feed.of(job, device), user_function(job.table, job.recipe_folder)
    if not resume and is_main():
        clear(course.folder)
    course.objective.to(device)
    if function is not None:
        record = _run_function(function, course, feed, resume=resume)
    else:
        learner = Learner.of(course.objective, job.table, course.accelerator)
        record = _Loop(course, learner, feed).run(resume=resume)
    wait()
    if is_main():
        clear(course.folder)
    return record


@dataclass(slots=True)
class _Loop:
    """A training by epochs; its methods are in the order in which they run."""

    course: Course
    learner: Learner
    feed: Feed
    checkpointed: float = field(default_factory=time.monotonic)

    def run(self, *, resume: bool) -> TrainingRecord:
        """Train to the last epoch, or until it gets no better."""
        course, table = self.course, self.course.job.table
        if not course.go_on(self.learner, resume=resume):
            self._judge_given()
        course.objective.train()
        while course.standing.epoch < table.epochs and not self._is_stale():
            self._run_epoch()
        course.restore_best()
        return course.record(f"no better for {table.patience} epochs" if self._is_stale() else "all epochs")

    def _judge_given(self) -> None:
        standing, verdict = self.course.standing, self.course.judge()
        standing.before = standing.last = asdict(verdict)
        if self.course.job.after_step is None:
            self.course.keep(verdict, epoch=0)

    def _run_epoch(self) -> None:
        course, standing, after_step = self.course, self.course.standing, self.course.job.after_step
        steps = self.feed.steps(standing.epoch)
        may_keep: bool | None = True
        with course.progress.step(self._name(), total=len(steps)) as advance:
            for number in range(standing.position, len(steps)):
                due = self._step(steps[number], number)
                may_keep = True if after_step is None else after_step(standing.steps, course.total)
                advance(number + 1)
                if due and number + 1 < len(steps):
                    self._checkpoint()
            self._end_epoch(may_keep=may_keep is not False)
        self._checkpoint()

    def _step(self, micro: Sequence[np.ndarray], number: int) -> bool:
        """Do one optimiser step over the rows of `micro` (one array a batch); return whether a checkpoint is due."""
        course, learner, table, standing = (
            self.course,
            self.learner,
            self.course.job.table,
            self.course.standing,
        )
        rows = sum(map(len, micro))
        learner.begin_step(course.rate)
        loss_sum = torch.zeros((), device=course.accelerator.device)
        for index, chosen in enumerate(micro):
            batch = self.feed.batch(chosen, standing.epoch, number * table.accumulate + index)
            loss_sum += learner.add_gradient(batch, rows=rows, last=index + 1 == len(micro))
        due = is_main() and time.monotonic() - self.checkpointed >= table.checkpoint_seconds
        total, votes = learner.sum_over_processes(loss_sum, vote=due)
        course.require_finite(total / rows, "loss", number)
        norm = learner.clip(table.clip_norm)
        if learner.scaler is None:  # the scaler of half precision skips such steps by itself
            course.require_finite(norm, "gradient", number)
        learner.optimizer.step()
        standing.steps, standing.position = standing.steps + 1, number + 1
        standing.loss_sum, standing.loss_rows = standing.loss_sum + total, standing.loss_rows + rows
        return votes > 0

    def _end_epoch(self, *, may_keep: bool) -> None:
        standing = self.course.standing
        standing.losses.append(standing.loss_sum / standing.loss_rows)
        standing.loss_sum, standing.loss_rows, standing.position = 0.0, 0, 0
        standing.epoch += 1
        verdict = self.course.judge()
        standing.last = asdict(verdict)
        if not may_keep:
            return
        is_higher = standing.top_score is None or verdict.score > standing.top_score
        standing.stale = 0 if is_higher else standing.stale + 1
        if standing.best is None or verdict.beats(Verdict(**standing.best)):
            self.course.keep(verdict, epoch=standing.epoch)

    def _checkpoint(self) -> None:
        self.course.save(self.learner)
        self.checkpointed = time.monotonic()

    def _name(self) -> str:
        standing, data = self.course.standing, self.course.job.data
        text = f"training {self.course.label}: epoch {standing.epoch + 1}/{self.course.job.table.epochs}"
        if standing.losses:
            text += f", loss {standing.losses[-1]:.3g}"
        if data.metric_name is not None:
            text += f", {data.metric_name} {standing.last['score']:.4g}"
        return text

    def _is_stale(self) -> bool:
        patience = self.course.job.table.patience
        return patience is not None and self.course.standing.stale >= patience


def _run_function(function: UserCallable, course: Course, feed: Feed, *, resume: bool) -> TrainingRecord:
    """Let the user's `function` train, and judge the weights before and after it."""
    job, standing = course.job, course.standing
    course.folder.mkdir(parents=True, exist_ok=True)
    standing.before = asdict(course.judge())
    epochs = 0

    def batches(epoch: int) -> Iterator[Batch]:
        nonlocal epochs
        epochs = max(epochs, epoch + 1)
        return feed.batches(epoch)

    session = Session(
        table=job.table,
        data=job.data,
        objective=course.objective,
        accelerator=course.accelerator,
        folder=course.folder,
        resume=resume,
        batches=batches,
        validate=lambda: course.judge().score,
        say=course.progress.say,
    )
    with course.progress.step(f"training {course.label}: {job.table.function}"):
        job.module.train()
        run_function(function, job.module, session)
    job.module.to(course.accelerator.device)
    require_sane_weights(job.module)
    standing.best = asdict(course.judge())
    standing.epoch = standing.best_epoch = epochs
    return course.record("the user's function")

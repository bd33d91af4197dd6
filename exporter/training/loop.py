"""One training loop for every method: on one CPU, one GPU, or as many processes as were launched.

It knows nothing of what it trains: an objective maps a batch to a loss. It can be killed at any moment and
goes on from its last checkpoint to the same bits. Two trainings of the same module, data, table and number of
processes on one machine give the same weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import CalibrationError, ResourceError
from exporter.model.state_dict import require_sane_weights
from exporter.progress import Progress, Silence
from exporter.recipe.compression import TrainingTable
from exporter.training.checkpoint import (
    clear,
    decode,
    newest,
    read_checkpoint,
    write_checkpoint,
)
from exporter.training.data import Batch, TrainingData, epoch_order, take
from exporter.training.distributed import (
    gather,
    is_main,
    make_accelerator,
    process_count,
    rank,
    share,
    share_bytes,
    wait,
)
from exporter.training.divergence import diverged, last_good
from exporter.training.fit import require_fit
from exporter.training.judging import Verdict, judge
from exporter.training.objectives import TaskObjective, settle_loss
from exporter.training.random_state import generator_of, random_state, repeatable, restore_random_state
from exporter.training.record import TrainingRecord
from exporter.training.schedule import divided, make_optimizer, rate_factor
from exporter.training.standing import Standing, load_state, pack, state_of, training_key, unpack
from exporter.training.user_function import Session, augmented, run_function, user_callable

if TYPE_CHECKING:
    from accelerate import Accelerator

AfterStep = Callable[[int, int], "bool | None"]
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def train(
    module: nn.Module,
    data: TrainingData | None,
    table: TrainingTable,
    *,
    folder: Path,
    progress: Progress,
    teacher: nn.Module | None = None,
    objective: nn.Module | None = None,
    after_step: AfterStep | None = None,
    predict: Callable[..., Any] | None = None,
    recipe_folder: Path = Path(),
    resume: bool = False,
    label: str | None = None,
) -> TrainingRecord:
    """Train `module` in place and return the record; it ends on the CPU, in eval mode, with its best weights.

    Best is the highest metric on the validation set (of equals, the lowest loss), over the epochs and, without
    `after_step`, the weights as given. `objective` maps (inputs, labels or `None`) to a scalar loss and holds
    `module` with whatever else is trained; its parameters of two or more axes are decayed, others are not.
    Default: `TaskObjective` with `teacher`. `after_step(done, total)` runs after every optimiser step; while it
    returns `False` the model is not yet what it shall become, and such weights are never the best. Its state
    must follow from its arguments and the objective's state, or a resumed run would differ. `predict(*inputs)`
    gives what the metric judges (default: `module`).

    `folder` belongs to this training alone: checkpoints live there and go when it has ended well. With
    `resume` it goes on from the newest whole one of the same training. In a run of several processes all of
    them call this; each optimiser step sees the rows it would see in one process. `label` names it in progress.

    Raises `CalibrationError` (13) without data, without labels and teacher, or for labels that do not fit,
    `UnsupportedError` (12) for a teacher of other outputs or a module that cannot train, `GateError` (14) when
    the loss is no longer finite, `InputError` (10) for the user's callables, `ResourceError` (15).
    """
    if data is None or not len(data):
        raise CalibrationError(
            "there is no training data", fix="add [data] training = { … } to the recipe, or train = false"
        )
    accelerator = make_accelerator(table.precision)
    loss = user_callable(table.loss, recipe_folder, key="training.loss") if ":" in table.loss else None
    require_fit(module, data, table, None if objective is not None else teacher, loss)
    if objective is None:
        objective = TaskObjective(
            module, teacher, table, settle_loss(table, data, loss), labelled=data.labelled
        )
    try:
        with repeatable(table.seed, accelerator.device):
            training = _Training(
                module=module,
                objective=objective,
                data=data,
                table=table,
                folder=folder,
                progress=progress if is_main() else Silence(),
                accelerator=accelerator,
                after_step=after_step,
                predict=predict or module,
                recipe_folder=recipe_folder,
                resume=resume,
                label=label or folder.name,
                teacher=teacher,
            )
            return training.run()
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


class _Training:
    """The state of one call of `train`; its methods are in the order in which they run."""

    def __init__(
        self,
        *,
        module: nn.Module,
        objective: nn.Module,
        data: TrainingData,
        table: TrainingTable,
        folder: Path,
        progress: Progress,
        accelerator: Accelerator,
        after_step: AfterStep | None,
        predict: Callable[..., Any],
        recipe_folder: Path,
        resume: bool,
        label: str,
        teacher: nn.Module | None,
    ) -> None:
        self.module, self.objective, self.data, self.table = module, objective, data, table
        self.folder, self.progress, self.accelerator = folder, progress, accelerator
        self.after_step, self.predict, self.label = after_step, predict, label
        self.resume = resume
        self.key = share(training_key(objective, teacher, data, table, recipe_folder))
        augment = table.augment
        self.augment = (
            None if augment is None else user_callable(augment, recipe_folder, key="training.augment")
        )
        self.function = (
            None
            if table.function is None
            else user_callable(table.function, recipe_folder, key="training.function")
        )
        batches = math.ceil(len(data) / table.batch_size)
        self.steps_per_epoch = math.ceil(batches / table.accumulate)
        self.total = table.epochs * self.steps_per_epoch
        self.standing = Standing()
        self.best: dict[str, Tensor] = {}
        self.resumed = False
        self.stopped = "all epochs"
        self.started = self.checkpointed = time.monotonic()

    # --- the whole ---------------------------------------------------------------------------------------

    def run(self) -> TrainingRecord:
        """Train from the start or from a checkpoint to the end, and clean up."""
        if not self.resume and is_main():
            clear(self.folder)
        self.objective.to(self.accelerator.device)
        record = self._run_function() if self.function is not None else self._run_epochs()
        wait()
        if is_main():
            clear(self.folder)
        return record

    def _run_epochs(self) -> TrainingRecord:
        optimizer = make_optimizer(self.objective, self.table)
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        if not self._go_on():
            self._judge_given()
        self.objective.train()
        while self.standing.epoch < self.table.epochs and not self._is_stale():
            self._run_epoch()
        if self._is_stale():
            self.stopped = f"no better for {self.table.patience} epochs"
        self._restore_best()
        return self._record()

    def _judge_given(self) -> None:
        standing = self.standing
        verdict = self._judge()
        standing.before = standing.last = asdict(verdict)
        if self.after_step is None:
            self._keep(verdict, epoch=0)

    def _run_epoch(self) -> None:
        standing = self.standing
        order = epoch_order(len(self.data), seed=self.table.seed, epoch=standing.epoch)
        steps = divided(order, self.table.batch_size, self.table.accumulate)
        may_keep: bool | None = True
        with self.progress.step(self._name(), total=len(steps)) as advance:
            for number in range(standing.position, len(steps)):
                due = self._step(steps[number], number)
                may_keep = True
                if self.after_step is not None:
                    may_keep = self.after_step(standing.steps, self.total)
                advance(number + 1)
                if due and number + 1 < len(steps):
                    self._checkpoint()
            self._end_epoch(may_keep=may_keep is not False)
        self._checkpoint()

    def _end_epoch(self, *, may_keep: bool) -> None:
        standing = self.standing
        standing.losses.append(standing.loss_sum / standing.loss_rows)
        standing.loss_sum, standing.loss_rows, standing.position = 0.0, 0, 0
        standing.epoch += 1
        verdict = self._judge()
        standing.last = asdict(verdict)
        if not may_keep:
            return
        is_higher = standing.top_score is None or verdict.score > standing.top_score
        standing.stale = 0 if is_higher else standing.stale + 1
        if standing.best is None or verdict.beats(Verdict(**standing.best)):
            self._keep(verdict, epoch=standing.epoch)

    def _name(self) -> str:
        standing = self.standing
        text = f"training {self.label}: epoch {standing.epoch + 1}/{self.table.epochs}"
        if standing.losses:
            text += f", loss {standing.losses[-1]:.3g}"
        if self.data.metric_name is not None:
            text += f", {self.data.metric_name} {standing.last['score']:.4g}"
        return text

    def _is_stale(self) -> bool:
        return self.table.patience is not None and self.standing.stale >= self.table.patience

    # --- one step ----------------------------------------------------------------------------------------

    def _step(self, micro: Sequence[np.ndarray], number: int) -> bool:
        """Do one optimiser step over the rows of `micro` (one array a batch); return whether a checkpoint is due."""
        standing = self.standing
        rows = sum(map(len, micro))
        for group in self.optimizer.param_groups:
            group["lr"] = self.table.learning_rate * rate_factor(self.table, standing.steps, self.total)
        self.optimizer.zero_grad()
        loss_sum = torch.zeros((), device=self.accelerator.device)
        for index, batch_rows in enumerate(micro):
            batch = self._batch(batch_rows, standing.epoch, number * self.table.accumulate + index)
            last = index + 1 == len(micro)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(batch.inputs, batch.labels)
                own = len(batch.inputs[0])
                # Processes' gradients are averaged with equal weight; their rows may differ by one.
                self.accelerator.backward(loss * (own * process_count() / rows))
            loss_sum += loss.detach().float() * own
        due = is_main() and time.monotonic() - self.checkpointed >= self.table.checkpoint_seconds
        total, votes = self._summed(loss_sum, due=due)
        self._require_finite(total / rows, "loss", number)
        norm = self.accelerator.clip_grad_norm_(
            [parameter for group in self.optimizer.param_groups for parameter in group["params"]],
            math.inf if self.table.clip_norm is None else self.table.clip_norm,
        )
        if self.accelerator.scaler is None:  # the scaler of half precision skips such steps by itself
            self._require_finite(float(norm), "gradient", number)
        self.optimizer.step()
        standing.steps, standing.position = standing.steps + 1, number + 1
        standing.loss_sum, standing.loss_rows = standing.loss_sum + total, standing.loss_rows + rows
        return votes > 0

    def _batch(self, rows: np.ndarray, epoch: int, number: int) -> Batch:
        """Return this process's share of `rows`, augmented, on its device."""
        mine = np.array_split(rows, process_count())[rank()]
        batch = take(self.data.training, self.data.training_labels, mine, self.data.inputs)
        inputs = batch.inputs
        if self.augment is not None:
            named = {spec.name: tensor for spec, tensor in zip(self.data.inputs, inputs, strict=True)}
            generator = generator_of(self.table.seed, epoch, number, rank())
            named = augmented(self.augment, named, generator, reference=str(self.table.augment))
            inputs = tuple(named[spec.name] for spec in self.data.inputs)
        device = self.accelerator.device
        return Batch(
            tuple(tensor.to(device) for tensor in inputs),
            None if batch.labels is None else batch.labels.to(device),
        )

    def _summed(self, loss: Tensor, *, due: bool) -> tuple[float, float]:
        """Return the loss over all processes, and whether the main one wants a checkpoint, in one exchange."""
        if process_count() == 1:
            return float(loss), float(due)
        pair = torch.stack((loss, torch.tensor(float(due), device=loss.device)))
        total, votes = self.accelerator.reduce(pair, reduction="sum").tolist()
        return total, votes

    def _require_finite(self, value: float, what: str, number: int) -> None:
        if math.isfinite(value):
            return
        self._restore_best()
        rate = self.table.learning_rate * rate_factor(self.table, self.standing.steps, self.total)
        kept = last_good(self.folder, self.standing.steps, remove=is_main())
        where = f"epoch {self.standing.epoch + 1}, step {number + 1} (learning rate {rate:.3g})"
        raise diverged(f"training {self.label}: the {what} became {value} in {where}", self.table, kept)

    # --- best weights ------------------------------------------------------------------------------------

    def _judge(self) -> Verdict:
        self._agree_on_buffers()
        verdict = judge(
            self.objective,
            self.data,
            predict=self.predict,
            batch_size=self.table.batch_size,
            device=self.accelerator.device,
        )
        if not math.isfinite(verdict.loss):
            self._require_finite(verdict.loss, "validation loss", max(0, self.standing.position - 1))
        return verdict

    def _agree_on_buffers(self) -> None:
        """Give every process the main one's buffers (a normalisation's statistics differ by what each has seen)."""
        if process_count() > 1:
            for buffer in self.objective.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _keep(self, verdict: Verdict, *, epoch: int) -> None:
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

    def _restore_best(self) -> None:
        if self.best:
            load_state(self.objective, self.best)
        elif self.standing.epoch:  # no epoch was allowed to be the best: the last one is what there is
            self.standing.best, self.standing.best_epoch = self.standing.last, self.standing.epoch

    def _record(self) -> TrainingRecord:
        standing = self.standing
        best = standing.best or standing.last
        return TrainingRecord(
            metric=self.data.metric_name or "minus the loss",
            before=standing.before["score"],
            best=best["score"],
            best_epoch=standing.best_epoch,
            epochs=standing.epoch,
            losses=tuple(standing.losses),
            stopped=self.stopped,
            seconds=standing.seconds + time.monotonic() - self.started,
            resumed=self.resumed,
            processes=process_count(),
        )

    # --- checkpoints -------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Write where the training stands; every process contributes the state of its generators."""
        generators = gather(random_state(self.accelerator.device))
        if is_main():
            seconds = self.standing.seconds + time.monotonic() - self.started
            standing = replace(self.standing, seconds=seconds)
            scaler = self.accelerator.scaler
            packed = pack(standing, self.objective, self.best, self.optimizer, scaler, generators)
            write_checkpoint(self.folder, standing.steps, self.key, packed)
        self.checkpointed = time.monotonic()

    def _go_on(self) -> bool:
        """Load the newest whole checkpoint of this training, if the run is to be resumed and there is one."""
        path = newest(self.folder, self.key, self.progress.say) if self.resume and is_main() else None
        if not share(path is not None):
            if is_main():  # numbers of another training's checkpoints would outrank ours
                clear(self.folder)
            return False
        if process_count() > 1:  # the main process's file may lie on no other node
            found = decode(share_bytes(b"" if path is None else path.read_bytes()))
        else:
            found = read_checkpoint(path or self.folder)
        scaler = self.accelerator.scaler
        self.standing, self.best = unpack(found, self.objective, self.optimizer, scaler)
        restore_random_state(found.facts["generators"][rank()], self.accelerator.device)
        self.resumed = True
        self.progress.say(f"training {self.label} goes on after step {self.standing.steps} of {self.total}")
        return True

    # --- the user's function -----------------------------------------------------------------------------

    def _run_function(self) -> TrainingRecord:
        if self.function is None:
            raise TypeError("no function to run")
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._judge()
        seen = -1

        def batches(epoch: int) -> Iterator[Batch]:
            nonlocal seen
            seen = max(seen, epoch)
            order = epoch_order(len(self.data), seed=self.table.seed, epoch=epoch)
            rows = [batch for step in divided(order, self.table.batch_size, 1) for batch in step]
            return (self._batch(chosen, epoch, number) for number, chosen in enumerate(rows))

        session = Session(
            table=self.table,
            data=self.data,
            objective=self.objective,
            accelerator=self.accelerator,
            folder=self.folder,
            resume=self.resume,
            batches=batches,
            validate=lambda: self._judge().score,
            say=self.progress.say,
        )
        with self.progress.step(f"training {self.label}: {self.table.function}"):
            self.module.train()
            run_function(self.function, self.module, session)
        self.module.to(self.accelerator.device)
        require_sane_weights(self.module)
        after = self._judge()
        self.standing.before, self.standing.best = asdict(before), asdict(after)
        self.standing.epoch = self.standing.best_epoch = seen + 1
        self.stopped = "the user's function"
        return self._record()

"""`method = "prune"`: whole channels, hidden units and heads leave the network.

Groups of coupled channels are found (`prune_groups`), scored (`importance`), queued (`prune_plan`) and taken out
up to the recipe's goal, in as many rounds as it wants with a training after each. What went is an edit
(`prune_edit`) that gives the same structure again from the module the step was given.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.compress.base import StepResult, Workshop
from exporter.compress.prune import importance
from exporter.compress.prune.attention import open_attention
from exporter.compress.prune.check import Probe, arguments_of, batches_of, require_sound
from exporter.compress.prune.cost import cost_of, parameters_of
from exporter.compress.prune.edit import (
    Change,
    apply_changes,
    changes_of,
    pruner_of,
    replay_edit,
    to_edit,
)
from exporter.compress.prune.goal import Standing, length_for_goal
from exporter.compress.prune.groups import ChannelGroup, Groups, find_groups, is_root
from exporter.compress.prune.plan import queue_up
from exporter.errors import CalibrationError, InputError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import PruneTable, TrainingTable, training_of
from exporter.system.files import canonical_json, require_file, write_json
from exporter.training.data import Batch, in_order
from exporter.training.distributed import is_main, share
from exporter.training.objectives import settle_loss, task_loss
from exporter.training.record import TrainingRecord

TAYLOR_SAMPLES = 1024
TAYLOR_BATCH = 32
ACTIVATION_SAMPLES = 256


def prune(source: SourceModel, table: PruneTable, workshop: Workshop) -> StepResult:
    """Return `source` without the channels that its goal removes, trained if the recipe says so.

    Raises `UnsupportedError` (12) for models that came as ONNX, when nothing can be pruned, or for a ratio that
    would leave layers without channels; `GateError` (14) naming the best reached for a budget that cannot be met;
    `RecipeError` (2) for a skip pattern that matches nothing; `CalibrationError` (13) for data that is missing.
    """
    if source.module is None:
        raise UnsupportedError(
            f"model {source.name} came as ONNX, and pruning changes torch modules",
            fix="give the model as a factory with weights, or remove the prune step",
        )
    training = training_of(table, workshop.recipe.training)
    _require_data(table, training, workshop)
    module = copy.deepcopy(source.module).eval()
    if table.history is not None:
        return _replayed(source, module, table, training, workshop)
    work = _Work(source, module, table, workshop, open_attention(module))
    for number in range(1, table.rounds + 1):
        work.run_round(number, training)
    return work.result(training)


def replay(module: nn.Module, edit: Mapping[str, Any], source: SourceModel) -> nn.Module:  # noqa: ARG001
    """Return a copy of `module` (the one the step was given) with the structure that `edit` describes.

    Needs neither data nor tracing. Raises `InputError` (10) when `edit` is not a pruning history of this model.
    """
    pruned = copy.deepcopy(module)
    replay_edit(pruned, edit)
    return pruned.eval()


@dataclass(slots=True)
class _Work:
    """One pruning under way: `module` changes from round to round; everything else is what it began with."""

    source: SourceModel
    module: nn.Module
    table: PruneTable
    workshop: Workshop
    opened: tuple[str, ...]
    rounds: list[tuple[Change, ...]]
    trainings: list[TrainingRecord]
    originals: dict[str, int]
    skipped: dict[str, str]
    notes: list[str]

    def __init__(
        self,
        source: SourceModel,
        module: nn.Module,
        table: PruneTable,
        workshop: Workshop,
        opened: tuple[str, ...],
    ) -> None:
        self.source, self.module, self.table, self.workshop, self.opened = (
            source,
            module,
            table,
            workshop,
            opened,
        )
        self.rounds, self.trainings, self.notes = [], [], []
        self.originals, self.skipped = {}, {}

    def run_round(self, number: int, training: TrainingTable | None) -> None:
        """Remove this round's share of the goal, then train."""
        memory = self.workshop.folder / f"round-{number}.json"
        key = self._key(number)
        with self.workshop.progress.step(f"pruning, round {number}/{self.table.rounds}"):
            changes = _remembered(memory, key)
            batches = batches_of(self.source)
            probe = Probe(self.module, batches)
            groups = self._groups(batches, number)
            if changes is None:
                changes = self._decide(groups.prunable, number)
                require_sound(self.source, probe, changes)
            # Every process of a distributed run removes what the main one decided.
            changes = changes_of(share(to_edit([changes], ())))[0]
            if is_main():
                _remember(memory, key, changes)
            apply_changes(self.module, changes)
        if changes:
            self.rounds.append(changes)
        if training is not None and changes:
            label = "prune" if self.table.rounds == 1 else f"prune round-{number}"
            self.trainings.append(self.workshop.train(self.module, training, label))
            self.module.eval()

    def _groups(self, batches: tuple[tuple[Tensor, ...], ...], number: int) -> Groups:
        groups = find_groups(
            self.module,
            batches[-1],
            Probe(self.module, batches[:1]),  # the whole is tried on all of them
            skip=self.table.skip,
            attention=self.table.attention,
            round_to=self.table.round_to,
        )
        if number == 1:
            self.skipped = groups.skipped
            self.originals = {group.name: group.size for group in groups.prunable}
            if not groups.prunable:
                reasons = "; ".join(f"{name}: {why}" for name, why in list(groups.skipped.items())[:4])
                raise UnsupportedError(
                    f"nothing in model {self.source.name} can be pruned: {reasons or 'it has no layers with channels'}",
                    fix="loosen skip, attention or round_to, or use factorize or sparsify",
                    details={"skipped": groups.skipped},
                )
        return groups

    def _decide(self, groups: Sequence[ChannelGroup], number: int) -> tuple[Change, ...]:
        scores = importance.scores_of_atoms(groups, self._scores(groups))
        queue = queue_up(
            groups,
            scores,
            scope=self.table.scope,
            round_to=self.table.round_to,
            max_layer_ratio=self.table.max_layer_ratio,
            originals=self.originals,
        )
        if not queue.units and number == 1:
            raise UnsupportedError(
                f"nothing in model {self.source.name} can be pruned: no layer has room for round_to = "
                f"{self.table.round_to} and max_layer_ratio = {self.table.max_layer_ratio}",
                fix="lower round_to or raise max_layer_ratio",
                details={"skipped": self.skipped},
            )
        length = length_for_goal(queue, self.table, self._standing(groups), share=number / self.table.rounds)
        if length == 0 and number == self.table.rounds and not self.rounds:
            if self.table.ratio is not None:
                raise UnsupportedError(
                    f"prune: ratio = {self.table.ratio:g} removes nothing: channels go {self.table.round_to} at a time",
                    fix="raise ratio or lower round_to",
                )
            self.notes.append("the model already meets the goal; nothing was pruned")
        return queue.changes(length)

    def _standing(self, groups: Sequence[ChannelGroup]) -> Standing:
        example = arguments_of(self.source, self.source.example)
        if self.source.module is None:
            raise TypeError("a module came with the source")
        gone = sum(self.originals.get(group.name, group.size) - group.size for group in groups)
        return Standing(
            source=self.source,
            module=self.module,
            example=example,
            original=cost_of(self.source.module, example),
            channels_at_start=sum(self.originals.values()),
            channels_gone=gone,
            measure=self.workshop.measure,
            figures=self.workshop.measure(self.source)
            if self.table.size_mb or self.table.latency_ms
            else None,
        )

    def _scores(self, groups: Sequence[ChannelGroup]) -> list[importance.Scores]:
        match self.table.importance:
            case "magnitude":
                return importance.magnitude(self.module, groups)
            case "bn_scale":
                return importance.bn_scale(self.module, groups)
            case "activation":
                return importance.activation(
                    self.module, groups, _calibration_samples(self.source, self.workshop)
                )
            case "taylor":
                return importance.taylor(
                    self.module, groups, _training_batches(self.workshop), _loss_of(self.table, self.workshop)
                )

    def _key(self, number: int) -> str:
        """Return a digest of what this round's decision depends on."""
        digest = hashlib.sha256(canonical_json([number, self.table.model_dump(mode="json")]))
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if self.workshop.training is not None:
            digest.update(self.workshop.training.fingerprint.encode())
        return digest.hexdigest()

    def result(self, training: TrainingTable | None) -> StepResult:
        """Return the step's answer."""
        edit = to_edit(self.rounds, self.opened)
        source = self.source
        if source.module is None:
            raise TypeError("a module came with the source")
        changed = None
        if self.trainings and training is not None:
            changed = replace(source, module=replay(source.module, edit, source))
        return StepResult(
            replace(source, module=self.module.eval()),
            edit,
            changed=changed,
            trainings=tuple(self.trainings),
            notes=tuple(self.notes),
            details=_details(source.module, self.module, self.skipped, source),
        )


def _details(
    before: nn.Module, after: nn.Module, skipped: Mapping[str, str], source: SourceModel
) -> dict[str, Any]:
    opened = copy.deepcopy(before)
    open_attention(opened)
    layers = {
        name: [widths[0], widths[1]]
        for name, layer in opened.named_modules()
        if is_root(layer)
        and (widths := (_width(layer), _width(after.get_submodule(name))))
        and widths[0] != widths[1]
    }
    example = arguments_of(source, source.example)
    return {
        "layers": layers,
        "skipped": dict(skipped),
        "macs": [cost_of(before, example).macs, cost_of(after, example).macs],
        "parameters": [parameters_of(before), parameters_of(after)],
    }


def _width(layer: nn.Module) -> int:
    return int(pruner_of(layer).get_out_channels(layer))


# --- data --------------------------------------------------------------------------------------------------


def _require_data(table: PruneTable, training: TrainingTable | None, workshop: Workshop) -> None:
    if training is not None and workshop.training is None:
        raise CalibrationError(
            "the prune step trains, and the recipe has no training data",
            fix="add [data] training = {…}, or train = false in the prune step",
        )
    if table.history is not None:
        return
    if table.importance == "taylor" and workshop.training is None:
        raise CalibrationError(
            'prune: importance = "taylor" needs gradients of the loss, and the recipe has no training data',
            fix='add [data] training = {…}, or use importance = "magnitude"',
        )
    if table.importance == "activation" and workshop.calibration is None:
        raise CalibrationError(
            'prune: importance = "activation" needs samples, and the recipe has no calibration data',
            fix='add [data] calibration = {…}, or use importance = "magnitude"',
        )


def _calibration_samples(source: SourceModel, workshop: Workshop) -> Iterator[tuple[Tensor, ...]]:
    if workshop.calibration is None:
        raise TypeError("checked before")
    for number, sample in enumerate(workshop.calibration):
        if number == ACTIVATION_SAMPLES:
            return
        yield arguments_of(source, sample)


def _training_batches(workshop: Workshop) -> Iterator[Batch]:
    data = workshop.training
    if data is None:
        raise TypeError("checked before")
    count = len(data)
    chosen = np.unique(np.linspace(0, count - 1, min(count, TAYLOR_SAMPLES)).astype(np.int64))
    arrays = {name: array[chosen] for name, array in data.training.items()}
    labels = None if data.training_labels is None else data.training_labels[chosen]
    return in_order(arrays, labels, data.inputs, TAYLOR_BATCH)


def _loss_of(table: PruneTable, workshop: Workshop) -> importance.Loss:
    """Return the task loss of the recipe's training; without labels, the power of the outputs."""
    data = workshop.training
    settings = training_of(table, workshop.recipe.training) or workshop.recipe.training
    if data is None:
        raise TypeError("checked before")
    loss = settle_loss(settings, data, workshop.recipe.folder)

    def judged(result: Any, labels: Tensor | None) -> Tensor:
        return (
            importance.power_of_outputs(result, None) if labels is None else task_loss(result, labels, loss)
        )

    return judged


# --- stored decisions --------------------------------------------------------------------------------------


def _remembered(path: Path, key: str) -> tuple[Change, ...] | None:
    """Return what a build that was killed had decided here: latencies would decide otherwise a second time."""
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text("utf-8"))
        return changes_of(stored["edit"])[0] if stored["key"] == key else None
    except (ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, key: str, changes: Sequence[Change]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, "edit": to_edit([changes], ())})


def _replayed(
    source: SourceModel,
    module: nn.Module,
    table: PruneTable,
    training: TrainingTable | None,
    workshop: Workshop,
) -> StepResult:
    """Return `source` pruned as `table.history` says, trained if wanted."""
    if table.history is None or source.module is None:
        raise TypeError("checked before")
    edit = _read_history(workshop.recipe.resolve(table.history))
    replay_edit(module, edit)
    require_sound(source, Probe(module, batches_of(source)), ())
    trainings: tuple[TrainingRecord, ...] = ()
    changed = None
    if training is not None:
        changed = replace(source, module=copy.deepcopy(module))
        trainings = (workshop.train(module, training, "prune"),)
    return StepResult(
        replace(source, module=module.eval()),
        edit,
        changed=changed,
        trainings=trainings,
        details=_details(source.module, module, {}, source),
    )


def _read_history(path: Path) -> dict[str, Any]:
    require_file(path, what="the pruning history")
    try:
        edit = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON: {error}", fix="give the JSON file of a prune step's edit"
        ) from error
    if not isinstance(edit, dict) or edit.get("kind") != "prune":
        raise InputError(
            f"{path} is not a pruning history: it has no kind = prune",
            fix="give the JSON file of a prune step's edit",
        )
    return edit

"""What a student minimises while it learns from its teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.distill.layers import Captured, LayerPair, Trace, attention_of, captured
from exporter.compress.distill.losses import (
    attention_map_loss,
    attention_transfer_loss,
    feature_loss,
    pooled,
    pooled_width,
    relation_loss,
    same_size,
    token_relation_loss,
)
from exporter.model.source import flatten_outputs
from exporter.recipe.compression import DistillTable, TrainingTable
from exporter.training.objectives import Loss, Teacher, imitation_loss, task_loss
from exporter.training.standing import state_digest

_STUDENT, _TEACHER = 0, 1


class DistillObjective(nn.Module):
    """hard · task + soft · imitation + feature · … + attention · … + relation · …, as the table weighs them.

    Holds the student and the projections of its features to the teacher's widths, which are trained with it
    and belong to the objective alone. Insides are read by forward hooks that last for one batch.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        table: DistillTable,
        training: TrainingTable,
        loss: Loss,
        pairs: Sequence[LayerPair],
        seen: tuple[Trace, Trace],
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, Teacher(teacher)
        self.table, self.loss, self.label_smoothing = table, loss, training.label_smoothing
        self.pairs = tuple(pairs) if table.feature else ()
        found = [attention_of(pair, seen) for pair in pairs] if table.attention else []
        self.attention = tuple(pair for pair in found if pair is not None)
        # The embedding is what the classifier reads; a network of embeddings returns it.
        self.heads: tuple[str, str] | None = None
        student_head, teacher_head = (one.head for one in seen)
        if table.relation and loss == "cross_entropy" and student_head and teacher_head:
            self.heads = student_head, teacher_head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.projections = nn.ModuleList(_projection(pair) for pair in self.pairs)
        facts = [table.model_dump(mode="json"), state_digest(teacher)]
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def forward(self, inputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """Return the loss of a batch, a scalar."""
        self.teacher.follow(inputs)
        with self._watched(self.student, _STUDENT) as ours:
            result = self.student(*inputs)
        with self._watched(self.teacher.module, _TEACHER) as theirs:
            target = self.teacher(inputs)
        parts = []
        if labels is not None and self.table.hard:
            task = task_loss(result, labels, self.loss, label_smoothing=self.label_smoothing)
            parts.append(self.table.hard * task)
        if self.table.soft:
            soft = imitation_loss(result, target, self.table.temperature, soft=self.loss == "cross_entropy")
            parts.append(self.table.soft * soft)
        if self.pairs:
            parts.append(self.table.feature * self._feature(ours, theirs))
        if self.attention:
            parts.append(self.table.attention * self._attention(ours, theirs))
        if self.table.relation:
            embeddings = self._embedding(result, ours, _STUDENT), self._embedding(target, theirs, _TEACHER)
            parts.append(self.table.relation * relation_loss(*embeddings))
        return torch.stack(parts).sum()

    def _watched(self, module: nn.Module, side: int) -> AbstractContextManager[Captured]:
        """Return the capture of all that the losses need of one of the two networks."""
        outputs = {((pair.student, pair.teacher)[side], 0) for pair in self.pairs}
        outputs |= {pair.read_from(side) for pair in self.attention}
        return captured(module, sorted(outputs), [] if self.heads is None else [self.heads[side]])

    def _feature(self, ours: Captured, theirs: Captured) -> Tensor:
        losses = []
        for pair, project in zip(self.pairs, self.projections, strict=True):
            one, other = ours.outputs[pair.student, 0], theirs.outputs[pair.teacher, 0]
            if pair.kind == "stage":
                one, other = same_size(one, other)
            elif pair.kind == "pooled":
                one, other = pooled(one), pooled(other)
            losses.append(feature_loss(project(one), other))
        return torch.stack(losses).mean()

    def _attention(self, ours: Captured, theirs: Captured) -> Tensor:
        losses = []
        for pair in self.attention:
            one, other = ours.outputs[pair.read_from(_STUDENT)], theirs.outputs[pair.read_from(_TEACHER)]
            match pair.source:
                case "activations":
                    losses.append(attention_transfer_loss(*same_size(one, other)))
                case "maps":
                    losses.append(attention_map_loss(one, other))
                case _:
                    losses.append(token_relation_loss(one, other))
        return torch.stack(losses).mean()

    def _embedding(self, result: Any, seen: Captured, side: int) -> Tensor:
        return flatten_outputs(result)[0] if self.heads is None else seen.inputs[self.heads[side]]


def _projection(pair: LayerPair) -> nn.Module:
    """Return the layer that brings the student's features to the teacher's width; nothing where they are equal."""
    if pair.kind == "stage":
        widths = pair.student_shape[0], pair.teacher_shape[0]
        return nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, kernel_size=1)
    if pair.kind == "block":
        widths = pair.student_shape[-1], pair.teacher_shape[-1]
    else:
        widths = pooled_width(pair.student_shape), pooled_width(pair.teacher_shape)
    return nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)

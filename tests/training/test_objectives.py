"""Losses against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from exporter.recipe.compression import TrainingTable
from exporter.training.objectives import (
    Teacher,
    class_axis,
    evaluating,
    imitation_loss,
    scaled_mse,
    soft_target_loss,
    task_loss,
    teacher_share,
)


def test_soft_targets_are_hintons() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    want = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (np.exp(np.asarray(row) / 3.0) for row in (theirs, ours))
        p, q = p / p.sum(), q / q.sum()
        want += 9.0 * float((p * np.log(p / q)).sum())
    assert float(soft_target_loss(student, teacher, 3.0)) == pytest.approx(want / 6, rel=1e-5)
    assert float(soft_target_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_imitation_takes_logits_softly_and_all_else_by_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    assert imitation_loss(ours, theirs, 2.0, soft=True) == soft_target_loss(ours, theirs, 2.0)
    assert imitation_loss(ours, theirs, 2.0, soft=False) == scaled_mse(ours, theirs)
    ids = torch.zeros(5, dtype=torch.long)
    pair = imitation_loss((ours, ours * 2, ids), (theirs, theirs, ids), 2.0, soft=True)
    assert float(pair) == pytest.approx(
        (float(scaled_mse(ours, theirs)) + float(scaled_mse(ours * 2, theirs))) / 2
    )


def test_distance_is_one_for_the_mean_and_zero_for_the_same() -> None:
    teacher = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 7 + 5
    assert float(scaled_mse(teacher, teacher)) == 0
    assert float(scaled_mse(teacher.mean().expand(50, 3), teacher)) == pytest.approx(1)
    assert math.isfinite(float(scaled_mse(torch.ones(2, 2), torch.zeros(2, 2))))


@pytest.mark.parametrize(
    ("output", "labels", "axis"),
    [
        ((4, 3), (4,), 1),
        ((4, 3, 8, 8), (4, 8, 8), 1),
        ((4, 8, 3), (4, 8), 2),
        ((4, 3, 3), (4, 3), 1),
        ((4,), (4,), None),
        ((4, 5, 6), (4, 7), None),
    ],
)
def test_where_classes_are(output: tuple[int, ...], labels: tuple[int, ...], axis: int | None) -> None:
    assert class_axis(output, labels) == axis


def test_cross_entropy_of_tokens_is_that_of_their_rows() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 0, -100], [1, 1, 0, 2, 2]], dtype=torch.int32)
    want = functional.cross_entropy(logits.reshape(10, 3), labels.long().reshape(10))
    assert task_loss({"logits": logits}, labels, "cross_entropy") == want
    smooth = task_loss({"logits": logits}, labels, "cross_entropy", label_smoothing=0.1)
    assert smooth != want


def test_the_teachers_share() -> None:
    table = TrainingTable(teacher=0.3)
    assert teacher_share(table, has_teacher=True, labelled=True) == 0.3
    assert teacher_share(table, has_teacher=False, labelled=True) == 0
    assert teacher_share(table, has_teacher=True, labelled=False) == 1


def test_a_teacher_answers_in_evaluation_mode_and_stays_as_it_was() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(2))
    module.train()
    inputs = (torch.ones(4, 2),)
    first, second = (Teacher(module)(inputs) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert all(part.training for part in module.modules())
    assert not module[2].running_mean.any()  # type: ignore[union-attr]


def test_evaluating_gives_each_part_its_own_mode_back() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False]

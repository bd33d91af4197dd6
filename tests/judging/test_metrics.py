"""Figures of fidelity, held against their definition worked out another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import CalibrationError, EdgeError
from exporter.judging.metrics import SQNR_CEILING_DB, compare_outputs, guard_metric, top1

finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
vectors = hnp.arrays(np.float32, st.integers(2, 12).map(lambda n: (1, n)), elements=finite)


def _reference_sqnr(wanted: list[np.ndarray], answered: list[np.ndarray]) -> float:
    """The definition in plain Python: exact sums, one logarithm."""
    pairs = [
        (float(r), float(c))
        for w, a in zip(wanted, answered, strict=True)
        for r, c in zip(w.flat, a.flat, strict=True)
    ]
    signal = math.fsum(r * r for r, _ in pairs)
    noise = math.fsum((r - c) ** 2 for r, c in pairs)
    if noise == 0:
        return SQNR_CEILING_DB
    if signal == 0:
        return -SQNR_CEILING_DB
    return max(-SQNR_CEILING_DB, min(SQNR_CEILING_DB, 10 * math.log10(signal / noise)))


@given(vectors, st.floats(-0.5, 0.5), st.integers(0, 2**32 - 1))
def test_sqnr_is_its_definition(wanted: np.ndarray, scale: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=wanted.shape).astype(np.float32) * np.float32(scale)
    answered = wanted + noise
    fidelity = compare_outputs([{"y": wanted}], [{"y": answered}])
    assert fidelity.sqnr_db == pytest.approx(_reference_sqnr([wanted], [answered]), abs=1e-6)
    assert fidelity.max_abs_error == pytest.approx(
        max(abs(float(r) - float(c)) for r, c in zip(wanted.flat, answered.flat, strict=True))
    )


@given(vectors)
def test_equal_outputs_are_perfect(wanted: np.ndarray) -> None:
    fidelity = compare_outputs([{"y": wanted}], [{"y": wanted.copy()}])
    assert (fidelity.sqnr_db, fidelity.max_abs_error) == (SQNR_CEILING_DB, 0.0)
    assert fidelity.cosine == pytest.approx(1.0)
    assert fidelity.agreement == 1.0


@given(vectors, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_one_answer_that_is_not_finite_is_the_worst_there_is(
    wanted: np.ndarray, value: float, data: st.DataObject
) -> None:
    answered = wanted.copy()
    answered.flat[data.draw(st.integers(0, wanted.size - 1))] = value
    assert compare_outputs([{"y": wanted}], [{"y": answered}]).sqnr_db == -SQNR_CEILING_DB


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_where_the_reference_is_not_finite_nothing_is_compared(value: float) -> None:
    wanted = np.array([[1.0, value, 3.0]], np.float32)
    fidelity = compare_outputs([{"y": wanted}], [{"y": np.array([[1.0, -65504.0, 3.0]], np.float32)}])
    assert (fidelity.sqnr_db, fidelity.max_abs_error) == (SQNR_CEILING_DB, 0.0)


def test_a_reference_without_a_finite_element_proves_nothing() -> None:
    nothing = np.full((1, 3), np.nan, np.float32)
    assert compare_outputs([{"y": nothing}], [{"y": nothing}]).sqnr_db == -SQNR_CEILING_DB


def test_no_samples_prove_nothing() -> None:
    with pytest.raises(CalibrationError, match="0 samples"):
        compare_outputs([], [])


def test_other_shapes_are_the_worst_there_is_even_where_they_would_broadcast() -> None:
    one, many = np.ones((1, 4), np.float32), np.ones((3, 4), np.float32)
    assert compare_outputs([{"y": one}], [{"y": many}]).sqnr_db == -SQNR_CEILING_DB
    empty = np.ones((0, 4), np.float32)
    assert compare_outputs([{"y": empty}], [{"y": one}]).sqnr_db == -SQNR_CEILING_DB


def test_empty_outputs_that_agree_are_equal() -> None:
    empty = np.ones((0, 4), np.float32)
    assert compare_outputs([{"y": empty}], [{"y": empty}]).sqnr_db == SQNR_CEILING_DB


def test_integer_outputs_count_by_their_difference() -> None:
    fidelity = compare_outputs([{"y": np.array([3, 5])}], [{"y": np.array([3, 9])}])
    assert fidelity.max_abs_error == 4
    assert fidelity.agreement is None


@given(st.lists(vectors, min_size=3, max_size=6), st.integers(0, 2**32 - 1))
def test_the_loudest_sample_cannot_hide_the_others(samples: list[np.ndarray], seed: int) -> None:
    """However loud one sample is, the figure is never above that of everything else."""
    generator = np.random.default_rng(seed)
    answered = [array + generator.normal(size=array.shape).astype(np.float32) for array in samples]
    loud = np.full((1, 4), 1e20, np.float32)
    fidelity = compare_outputs(
        [{"y": array} for array in [*samples, loud]], [{"y": array} for array in [*answered, loud]]
    )
    assert fidelity.sqnr_db <= _reference_sqnr(samples, answered) + 1e-6


def test_agreement_counts_positions_of_the_last_axis() -> None:
    wanted = np.array([[[0.1, 0.9], [0.8, 0.2]]], np.float32)
    answered = np.array([[[0.2, 0.8], [0.4, 0.6]]], np.float32)
    assert compare_outputs([{"y": wanted}], [{"y": answered}]).agreement == 0.5


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 5)), elements=finite))
def test_top1_is_the_share_of_arg_maxima(scores: np.ndarray) -> None:
    outputs = [{"y": row[None]} for row in scores]
    labels = np.arange(len(scores)) % scores.shape[1]
    expected = sum(
        int(max(range(len(row)), key=lambda k: row[k]) == label)
        for row, label in zip(scores, labels, strict=True)
    )
    assert top1(outputs, labels) == pytest.approx(expected / len(scores))


@pytest.mark.parametrize(
    "labels", [np.arange(2), np.zeros((3, 1), int), np.zeros(3), np.array(["a", "b", "c"])]
)
def test_top1_refuses_labels_that_are_no_class_numbers(labels: np.ndarray) -> None:
    with pytest.raises(CalibrationError):
        top1([{"y": np.zeros((1, 4))}] * 3, labels)


@pytest.mark.parametrize("output", [np.float32(1.0), np.zeros((1, 1), np.float32)])
def test_top1_refuses_outputs_without_classes(output: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="no axis of classes"):
        top1([{"y": np.asarray(output)}], np.zeros(1, int))


def test_a_metric_that_works_is_passed_through() -> None:
    assert guard_metric("m.py:f", lambda outputs, labels: np.float32(0.5))([], np.zeros(1)) == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_a_metric_without_a_number_is_named(value: object) -> None:
    with pytest.raises(EdgeError, match=r"m\.py:f"):
        guard_metric("m.py:f", lambda outputs, labels: value)([], np.zeros(1))

"""Paired drops: the point estimate is the plain difference, and the interval covers the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.judging.drops import drop_by_metric, drop_of_agreement
from exporter.judging.metrics import top1

Hits = list[bool]


def answers(hits: Hits) -> list[dict[str, np.ndarray]]:
    """Outputs over two classes that are right (class 1) where `hits` says so."""
    return [{"y": np.asarray([[0.0, 1.0]] if hit else [[1.0, 0.0]], np.float32)} for hit in hits]


def labels(count: int) -> np.ndarray:
    return np.ones(count, np.int64)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_drop_is_the_difference_of_scores_and_lies_in_its_interval(
    pairs: list[tuple[bool, bool]],
) -> None:
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    drop = drop_by_metric(top1, labels(len(pairs)), answers(before), answers(after))
    assert drop.points == pytest.approx(100 * (np.mean(before) - np.mean(after)))
    assert drop.low <= drop.points <= drop.high or abs(drop.points) == 100
    assert drop.samples == len(pairs)


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.05, 0.05), (0.10, 0.02)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(lost: float, won: float) -> None:
    generator, covered, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        draw = generator.random(300)
        before, after = list(draw >= won), list((draw < won) | (draw >= won + lost))
        drop = drop_by_metric(top1, labels(300), answers(before), answers(after))
        covered += drop.low <= 100 * (lost - won) <= drop.high
    assert 0.92 <= covered / rounds <= 0.99


def test_a_single_changed_sample_is_noise_and_twenty_of_a_hundred_are_not() -> None:
    before = [True] * 100
    one = drop_by_metric(top1, labels(100), answers(before), answers([False] + [True] * 99))
    many = drop_by_metric(top1, labels(100), answers(before), answers([False] * 20 + [True] * 80))
    assert one.is_noise and one.points == pytest.approx(1.0)
    assert not many.is_noise and many.low > 10


def test_another_metric_gets_a_bootstrap_that_is_the_same_every_time() -> None:
    def mean_of_first(outputs, wanted) -> float:  # type: ignore[no-untyped-def]
        return float(np.mean([output["y"][0, 1] for output in outputs]))

    before, after = answers([True] * 40), answers([True] * 30 + [False] * 10)
    first = drop_by_metric(mean_of_first, labels(40), before, after)
    again = drop_by_metric(mean_of_first, labels(40), before, after)
    assert first == again
    assert first.points == pytest.approx(25.0)
    # Binomial with p = 0.25, n = 40: 1.96 standard errors are 13.4 points.
    assert 8 < first.low < 16 and 34 < first.high < 42


def test_agreement_counts_positions_and_keeps_those_of_one_sample_together() -> None:
    whole = drop_of_agreement([[True]] * 50)
    assert (whole.points, whole.low) == (0.0, 0.0) and 0 < whole.high < 10
    wilson = drop_of_agreement([[True]] * 45 + [[False]] * 5)
    assert wilson.points == pytest.approx(10.0)
    # Wilson's interval for 5 of 50, from its closed form: 4.35 % to 21.36 %.
    assert wilson.low == pytest.approx(4.35, abs=0.02) and wilson.high == pytest.approx(21.36, abs=0.02)
    clustered = drop_of_agreement([[False] * 20] + [[True] * 20] * 9)
    assert clustered.points == pytest.approx(10.0)
    assert clustered.high - clustered.low > 1.5 * (wilson.high - wilson.low)


def test_a_drop_counted_from_elsewhere_is_shifted_whole() -> None:
    drop = drop_by_metric(top1, labels(10), answers([True] * 10), answers([True] * 9 + [False])).plus(2.0)
    assert drop.points == pytest.approx(12.0)
    assert drop.low < 12 < drop.high

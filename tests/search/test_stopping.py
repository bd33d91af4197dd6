"""Trials end early when they break a limit, or trail those that are as good in everything else."""

from __future__ import annotations

import pytest

from exporter.recipe.tune import ConstraintsTable
from exporter.search.stopping import LATENCY_NOISE, Course, excesses, trails
from exporter.search.trial import TrialFigures, goals_of

GOALS = goals_of(("metric", "size"), "top1")


def figures(size: int = 100, latency: float = 1.0, metric: float | None = None) -> TrialFigures:
    return TrialFigures(size, size, latency, 1_000_000, 10, metric)


@pytest.mark.parametrize(
    ("limits", "broken"),
    [
        (ConstraintsTable(), []),
        (ConstraintsTable(max_size_mb=0.0001, max_mmacs=1), []),
        (ConstraintsTable(max_size_mb=0.00005), [("max_size_mb", 1.0)]),
        (ConstraintsTable(max_latency_ms=0.5, max_mmacs=0.5), [("max_latency_ms", 1.0), ("max_mmacs", 1.0)]),
        (ConstraintsTable(min_metric=0.9), [("min_metric", pytest.approx(1 / 9))]),
    ],
)
def test_limits_that_are_broken_are_named_with_their_share(limits: ConstraintsTable, broken: object) -> None:
    assert [(excess.limit, excess.amount) for excess in excesses(figures(metric=0.8), limits)] == broken


def test_an_unmeasured_metric_breaks_nothing_and_noise_breaks_no_latency() -> None:
    assert excesses(figures(), ConstraintsTable(min_metric=0.9)) == ()
    slow = figures(latency=1.05)
    assert excesses(slow, ConstraintsTable(max_latency_ms=1)) != ()
    assert excesses(slow, ConstraintsTable(max_latency_ms=1), noise=LATENCY_NOISE) == ()


def course(*validations: float, size: int = 100, schedule: str = "prune 4") -> Course:
    return Course(figures(size), validations, schedule)


PEERS = [course(0.5, 0.8, 0.9), course(0.5, 0.7, 0.9), course(0.5, 0.6, 0.9)]


@pytest.mark.parametrize(
    ("own", "peers", "stops"),
    [
        (course(0.5, 0.69), PEERS, True),
        (course(0.5, 0.7), PEERS, False),
        (course(0.75, 0.1), PEERS, False),
        (course(0.1), PEERS, False),
        (course(0.5, 0.1), PEERS[:2], False),
        (course(0.5, 0.1), [*PEERS[:2], course(0.5)], False),
        (course(0.5, 0.1), [*PEERS[:2], course(0.5, 0.6, schedule="prune 9")], False),
        (course(0.5, 0.1, size=50), PEERS, False),
        (course(0.5, 0.1, size=96), PEERS, True),
    ],
)
def test_only_what_is_behind_equals_is_stopped(own: Course, peers: list[Course], stops: bool) -> None:
    assert trails(own, peers, GOALS, patience=1) is stops


def test_what_only_the_finished_artifact_shows_forbids_stopping() -> None:
    goals = goals_of(("metric", "device:p90_ms"), "top1")
    assert not trails(course(0.5, 0.1), PEERS, goals, patience=1)

"""When a trial is not worth finishing: it breaks a limit before any training, or trails those it competes with.

Optuna's pruners judge one objective and refuse studies with more; these two rules are sound with several. Both
decide from what is known: the figures of the untrained artifact, and validations so far. Knows no Optuna.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.recipe.tune import ConstraintsTable
from exporter.search.trial import Goal, TrialFigures

LATENCY_NOISE = 1.1
"""Two timings of one file on a busy host differ by about this factor; nothing is rejected on less."""
AS_GOOD = 1.05
"""A competitor may be this much larger or slower and still count as one of the same kind."""
FEWEST_PEERS = 3


@dataclass(frozen=True, slots=True)
class Excess:
    """One limit and the figure that exceeds it; `amount` is above 0, as a share of the limit."""

    limit: str
    amount: float
    sentence: str


def excesses(figures: TrialFigures, limits: ConstraintsTable, *, noise: float = 1.0) -> tuple[Excess, ...]:
    """Return the limits that `figures` break; a metric that is not measured yet breaks none.

    `noise` is the factor by which a latency may exceed its limit all the same.
    """
    held = (
        ("max_size_mb", figures.size_bytes / 1e6, limits.max_size_mb, 1.0, "MB"),
        ("max_latency_ms", figures.latency_ms, limits.max_latency_ms, noise, "ms"),
        ("max_mmacs", figures.macs / 1e6, limits.max_mmacs, 1.0, "million MACs"),
    )
    found = [
        Excess(name, value / limit - 1, f"{value:.4g} {unit}, and {name} is {limit:g}")
        for name, value, limit, slack, unit in held
        if limit is not None and value > limit * slack
    ]
    floor = limits.min_metric
    if floor is not None and figures.metric is not None and figures.metric < floor:
        amount = (floor - figures.metric) / (abs(floor) or 1.0)
        found.append(Excess("min_metric", amount, f"{figures.metric:.4g}, and min_metric is {floor:g}"))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Course:
    """A trial's way so far: figures known before training, validation metrics in order, and its schedule.

    Only trials of one `schedule` (which trainings, of how many epochs) can be compared validation by validation.
    """

    figures: TrialFigures
    validations: tuple[float, ...]
    schedule: str


def trails(course: Course, finished: Sequence[Course], goals: Sequence[Goal], *, patience: int) -> bool:
    """Whether the best validation of `course` is below the median of its competitors' at the same point.

    The median stopping rule (Golovin et al. 2017, Google Vizier) among those finished trials alone that are as
    good in every other objective: to be below *their* median is to be heading behind the front, whereas a small
    model below the median of large ones may well be on it. Never with fewer than `FEWEST_PEERS` competitors, in
    the first `patience` validations, or with an objective that only the finished artifact shows.
    """
    step = len(course.validations)
    if step <= patience or any(goal.name.startswith("device:") for goal in goals):
        return False
    others = [goal for goal in goals if goal.name != "metric"]
    peers = [
        peer.validations[step - 1]
        for peer in finished
        if peer.schedule == course.schedule
        and len(peer.validations) >= step
        and all(_as_good(goal, peer.figures, course.figures) for goal in others)
    ]
    return len(peers) >= FEWEST_PEERS and max(course.validations) < statistics.median(peers)


def _as_good(goal: Goal, peer: TrialFigures, own: TrialFigures) -> bool:
    return goal.value(peer) <= goal.value(own) * AS_GOOD

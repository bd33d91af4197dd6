"""What a study has found: its trials as plain data, the front among them, and the one to go on with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from exporter.errors import GateError, UsageError
from exporter.recipe.tune import ConstraintsTable
from exporter.search.stopping import excesses
from exporter.search.trial import Goal, TrialFigures


class Outcome(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Point:
    """One trial: the searched keys' values, what was measured, and why it ended early if it did.

    `objectives` are in the order of the study's goals (empty unless complete); `broken` are sentences, one for
    each limit that its figures break; `screened` are the figures of its untrained artifact.
    """

    number: int
    outcome: Outcome
    values: Mapping[str, Any]
    objectives: tuple[float, ...]
    figures: TrialFigures | None
    screened: TrialFigures | None
    validations: tuple[float, ...]
    broken: tuple[str, ...]
    reason: str
    seconds: float | None
    worker: str

    @property
    def is_candidate(self) -> bool:
        """Whether it may be chosen: finished, and within every limit."""
        return self.outcome is Outcome.COMPLETE and not self.broken


@dataclass(frozen=True, slots=True)
class Findings:
    """A study as it stands: all its points, the front, and the chosen one with the reason."""

    study: str
    storage: str
    model: str
    goals: tuple[Goal, ...]
    limits: ConstraintsTable
    original: TrialFigures | None
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    chosen: Point
    why: str


def front(points: Sequence[Point], goals: Sequence[Goal]) -> tuple[Point, ...]:
    """Return the Pareto front: candidates that no other one equals or beats in everything, in order of the first goal.

    Of points that are equal in every objective the earliest stands for all.
    """
    candidates = [point for point in points if point.is_candidate]
    losses = {point.number: _losses(point, goals) for point in candidates}
    kept = [
        point
        for point in candidates
        if not any(_beats(losses[other.number], other, losses[point.number], point) for other in candidates)
    ]
    return tuple(sorted(kept, key=lambda point: (losses[point.number], point.number)))


def _losses(point: Point, goals: Sequence[Goal]) -> tuple[float, ...]:
    return tuple(-v if goal.maximize else v for goal, v in zip(goals, point.objectives, strict=True))


def _beats(one: tuple[float, ...], first: Point, other: tuple[float, ...], second: Point) -> bool:
    if one == other:
        return first.number < second.number
    return all(a <= b for a, b in zip(one, other, strict=True))


def knee(points: Sequence[Point], goals: Sequence[Goal]) -> Point:
    """Return the point of a front that is nearest to the ideal one, which has the best of every objective.

    Each objective is scaled to 0..1 over the front and the distance is Euclidean (compromise programming, Zeleny
    1973, with p = 2 and equal weights); the earliest trial wins a tie. On a front of two points both ends are
    equally far: it is then the better one in the first objective, so order the objectives by importance.
    """
    losses = [_losses(point, goals) for point in points]
    low = [min(column) for column in zip(*losses, strict=True)]
    high = [max(column) for column in zip(*losses, strict=True)]

    def distance(row: Sequence[float]) -> float:
        scaled = ((v - a) / (b - a) if b > a else 0.0 for v, a, b in zip(row, low, high, strict=True))
        return round(math.hypot(*scaled), 9)

    order = sorted(range(len(points)), key=lambda i: (distance(losses[i]), losses[i], points[i].number))
    return points[order[0]]


def choose(
    how: str, points: Sequence[Point], goals: Sequence[Goal], limits: ConstraintsTable
) -> tuple[Point, str]:
    """Return the chosen point and why: `knee`, `constraint`, or the number of a finished trial.

    `constraint` is the best in the first objective of those within `limits`. Raises `UsageError` for a number
    that was not finished, and `GateError` (14) naming the nearest when no trial is within the limits.
    """
    if how.isdigit():
        return _numbered(int(how), points), "chosen by its number"
    best = front(points, goals)
    if not best:
        raise _nothing_holds(points, limits)
    if how == "constraint":
        if limits == ConstraintsTable():
            raise UsageError(
                "--choose constraint, and the recipe has no [tune.constraints]",
                fix="add one, such as max_latency_ms = 2.0, or use --choose knee",
            )
        return best[0], f"best {goals[0].label} within the constraints"
    return knee(best, goals), "knee of the front: nearest to the best of every objective at once"


def _numbered(number: int, points: Sequence[Point]) -> Point:
    point = next((point for point in points if point.number == number), None)
    if point is None or point.outcome is not Outcome.COMPLETE:
        finished = ", ".join(str(point.number) for point in points if point.outcome is Outcome.COMPLETE)
        state = "does not exist" if point is None else f"is {point.outcome}"
        raise UsageError(f"trial {number} {state}", fix=f"choose one of {finished or '(none is finished)'}")
    return point


def _nothing_holds(points: Sequence[Point], limits: ConstraintsTable) -> GateError:
    """Return the error of a search that found nothing usable, naming what came nearest."""
    known = [(point, point.figures or point.screened) for point in points]
    broken = [(point, excesses(figures, limits)) for point, figures in known if figures is not None]
    near = min(
        ((point, found) for point, found in broken if found),
        key=lambda pair: (max(excess.amount for excess in pair[1]), pair[0].number),
        default=None,
    )
    if near is None:
        failed = next((point for point in points if point.outcome is Outcome.FAILED), None)
        because = "" if failed is None else f"; trial {failed.number}: {failed.reason}"
        return GateError(
            f"no trial of {len(points)} was finished{because}",
            fix="correct what made them fail, or allow more trials",
            details={"trials": len(points)},
        )
    point, found = near
    return GateError(
        f"no trial of {len(points)} is within the constraints; trial {point.number} came nearest with "
        + "; ".join(excess.sentence for excess in found),
        fix="loosen [tune.constraints], widen [tune.space], or allow more trials",
        details={"nearest": {"trial": point.number, "values": dict(point.values)}, "trials": len(points)},
    )

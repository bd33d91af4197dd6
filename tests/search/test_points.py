"""The front, its knee, and what is chosen from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import GateError, UsageError
from exporter.recipe.tune import ConstraintsTable
from exporter.search.points import Outcome, Point, choose, front, knee
from exporter.search.trial import TrialFigures, goals_of

GOALS = goals_of(("metric", "size"), "top1")


def point(
    number: int, metric: float, size: float, *, broken: str = "", outcome: Outcome = Outcome.COMPLETE
) -> Point:
    figures = TrialFigures(int(size), 1, 1.0, 1, 1, metric)
    values = {"k": number}
    reached = (metric, size) if outcome is Outcome.COMPLETE else ()
    return Point(
        number, outcome, values, reached, figures, None, (), (broken,) if broken else (), "", 1.0, ""
    )


def test_the_front_is_what_nothing_beats_best_first() -> None:
    points = [
        point(0, 0.9, 100),
        point(1, 0.8, 100),
        point(2, 0.95, 300),
        point(3, 0.7, 50),
        point(4, 0.9, 100),
    ]
    assert [p.number for p in front(points, GOALS)] == [2, 0, 3]


def test_only_finished_points_within_the_limits_are_on_the_front() -> None:
    points = [
        point(0, 0.99, 1, broken="too slow"),
        point(1, 0.5, 9),
        point(2, 0.9, 1, outcome=Outcome.PRUNED),
    ]
    assert [p.number for p in front(points, GOALS)] == [1]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_a_front_beats_all_others_and_not_itself(rows: list[tuple[int, int]]) -> None:
    points = [point(number, metric, size) for number, (metric, size) in enumerate(rows)]
    best = front(points, GOALS)

    def covers(one: Point, other: Point) -> bool:
        return one.objectives[0] >= other.objectives[0] and one.objectives[1] <= other.objectives[1]

    assert all(any(covers(p, q) for p in best) for q in points)
    assert not any(covers(p, q) for p in best for q in best if p is not q)
    assert knee(best, GOALS) in best


def test_the_knee_is_nearest_to_the_best_of_everything() -> None:
    points = [point(0, 0.99, 100), point(1, 0.98, 30), point(2, 0.6, 20)]
    assert knee(points, GOALS).number == 1


def test_two_ends_are_equally_far_and_the_first_objective_decides() -> None:
    assert knee([point(0, 0.6, 20), point(1, 0.99, 100)], GOALS).number == 1


def test_choices() -> None:
    points = [point(0, 0.99, 100), point(1, 0.98, 30), point(2, 0.6, 20), point(3, 0.5, 90)]
    limits = ConstraintsTable(max_size_mb=1)
    assert [choose(how, points, GOALS, limits)[0].number for how in ("knee", "constraint", "3")] == [1, 0, 3]
    with pytest.raises(UsageError, match=r"no \[tune.constraints\]"):
        choose("constraint", points, GOALS, ConstraintsTable())
    with pytest.raises(UsageError, match="trial 9 does not exist; fix: choose one of 0, 1, 2, 3"):
        choose("9", points, GOALS, limits)
    with pytest.raises(UsageError, match="trial 4 is pruned"):
        choose("4", [*points, point(4, 0.1, 1, outcome=Outcome.PRUNED)], GOALS, limits)


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    limits = ConstraintsTable(max_size_mb=0.00001)
    points = [point(0, 0.99, 100, broken="x"), point(1, 0.98, 30, broken="x")]
    with pytest.raises(
        GateError, match="no trial of 2 is within the constraints; trial 1 came nearest with 3e-05 MB"
    ) as e:
        choose("knee", points, GOALS, limits)
    assert e.value.exit_code == 14
    assert e.value.details["nearest"] == {"trial": 1, "values": {"k": 1}}


def test_a_study_of_failures_says_why() -> None:
    failed = Point(0, Outcome.FAILED, {}, (), None, None, (), (), "conv1 is gone", 1.0, "")
    with pytest.raises(GateError, match="no trial of 1 was finished; trial 0: conv1 is gone"):
        choose("knee", [failed], GOALS, ConstraintsTable())

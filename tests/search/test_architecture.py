"""Architecture search: the budget is held before training, the best go on, and every process can decide alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from search_ground import RECIPE, Arithmetic, question_of, run

from exporter.errors import RecipeError
from exporter.recipe.compression import DistillTable, StudentTable
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.search.points import Outcome
from exporter.search.trial import Report, TrialFigures

STEPS = """\
[[compress]]
method = "student"   # a small one
family = "mobilenet-v3-small"
width = 1.0

[[compress]]
method = "distill"
"""
TEXT = (
    RECIPE.partition("[[compress]]")[0]
    + STEPS
    + """\
[quantize]
scheme = "static_wi8_ai8"
[targets.android]
[tune]
objectives = ["metric", "latency"]
[tune.architecture]
latency_ms = 1.0
width = [0.25, 0.5, 0.75, 1.0]
depth = [0.5, 1.0]
epochs = [1, 3, 9]
"""
)


class Widths(Arithmetic):
    """Latency grows with width and depth, and so does the metric; more epochs bring a little more."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[tuple[float, float, int]] = []

    def screen(self, recipe: Recipe, folder: Path) -> TrialFigures | None:
        self.screened += 1
        return self._measured(recipe)

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
        student, distill = recipe.compress
        if not isinstance(student, StudentTable) or not isinstance(distill, DistillTable):
            raise TypeError(recipe.compress)
        self.trained.append((student.width, student.depth, distill.train.epochs))
        metric = 0.5 + 0.3 * student.width + 0.1 * student.depth + 0.01 * distill.train.epochs
        return dataclasses.replace(self._measured(recipe), metric=metric)

    @staticmethod
    def _measured(recipe: Recipe) -> TrialFigures:
        student = recipe.compress[0]
        if not isinstance(student, StudentTable):
            raise TypeError(student)
        return TrialFigures(1000, 500, 1.5 * student.width * student.depth, 100, 10)


def test_candidates_over_the_budget_are_never_trained_and_the_best_reach_the_top(tmp_path: Path) -> None:
    work = Widths()
    findings = run(question_of(tmp_path, TEXT), tmp_path / "out", 40, work).findings
    assert all(1.5 * width * depth <= 1.0 for width, depth, _ in work.trained)
    rejected = [point for point in findings.points if point.outcome is Outcome.PRUNED]
    assert {(p.values["compress.0.width"], p.values["compress.0.depth"]) for p in rejected} <= {
        (0.75, 1.0),
        (1.0, 1.0),
    }
    epochs = [epochs for _, _, epochs in work.trained]
    assert epochs.count(1) == 6
    assert 2 <= epochs.count(3) < 6
    assert 1 <= epochs.count(9) <= epochs.count(3)
    assert max(work.trained, key=lambda trained: trained[2])[:2] == (1.0, 0.5)
    assert findings.chosen.number < len(findings.points) < 40, "it ends when nothing is left to promote"


def test_nothing_as_large_as_what_was_too_slow_is_even_measured(tmp_path: Path) -> None:
    work = Widths()
    text = TEXT.replace("latency_ms = 1.0", "latency_ms = 0.05").replace('"latency"]', '"size"]')
    with pytest.raises(
        Exception, match=r"no trial of . is within the constraints; trial . came nearest with 0.1875 ms"
    ):
        run(question_of(tmp_path, text), tmp_path / "out", 40, work)
    assert 1 <= work.screened < 8
    assert work.trained == []


def test_few_trials_still_bring_one_candidate_to_the_top(tmp_path: Path) -> None:
    work = Widths()
    run(question_of(tmp_path, TEXT), tmp_path / "out", 6, work)
    assert work.trained[-1][2] == 9


def test_the_chosen_recipe_gets_the_long_training_and_keeps_its_text(tmp_path: Path) -> None:
    tuned = run(question_of(tmp_path, TEXT), tmp_path / "out", 30, Widths())
    recipe = read_recipe(tuned.recipe.path)
    student, distill = recipe.compress
    assert isinstance(student, StudentTable)
    assert isinstance(distill, DistillTable)
    assert student.width == tuned.findings.chosen.values["compress.0.width"]
    assert distill.train.epochs == 9
    assert tuned.findings.chosen == tuned.findings.front[0], "the best metric within the budget"
    assert "# a small one" in tuned.recipe.path.read_text()


def test_going_on_decides_as_if_never_stopped(tmp_path: Path) -> None:
    question = question_of(tmp_path, TEXT)
    whole, parts = Widths(), Widths()
    run(question, tmp_path / "whole", 12, whole)
    for trials in (12, 12):
        run(question, tmp_path / "parts", trials, parts)
    assert parts.trained == whole.trained


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (STEPS, '[[compress]]\nmethod = "prune"\nratio = 0.3\n', "the recipe has no step of that kind"),
        ('\n[[compress]]\nmethod = "distill"\n', "", "nothing trains the student of compress.0"),
        ("epochs = [1, 3, 9]", "epochs = [3, 3]", "epochs must rise"),
        ("width = [0.25, 0.5, 0.75, 1.0]", "width = [9.0]", "less than or equal to 4"),
        ('"metric", "latency"', '"size", "latency"', "ranks by the metric"),
        ("depth = [0.5, 1.0]", "deep = [1]", "deep: unknown key; fix: known here: depth"),
    ],
)
def test_a_search_without_sense_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(RecipeError) as caught:
        question_of(tmp_path, TEXT.replace(old, new))
    assert said in str(caught.value)

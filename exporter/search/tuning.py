"""A whole search: the recipe's space held against its models, the study joined, trials run, findings written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import RecipeError, UsageError
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.recipe.tune import TuneTable
from exporter.search.addresses import masked
from exporter.search.points import Findings, choose, front
from exporter.search.results import TunedRecipe, write_study, write_tuned
from exporter.search.space import Space, make_space, read_tables
from exporter.search.trial import Evaluate, TrialFigures, goals_of
from exporter.system.extras import require_installed
from exporter.system.files import disk_errors, scratch_folder

if TYPE_CHECKING:
    import optuna

    from exporter.search.running import Strategy

JOURNAL = "study.log"
EXAMPLE = 'add [tune.space] with a line such as "compress.0.remove_macs" = { low = 0.2, high = 0.7 }'


@dataclass(frozen=True, slots=True)
class Question:
    """What a recipe asks a search: itself, its `[tune]`, and the space that this spans.

    `rungs` is the key of the epochs in an architecture search, whose last value the chosen recipe gets.
    """

    path: Path
    recipe: Recipe
    table: TuneTable
    tables: Mapping[str, Any]
    space: Space
    rungs: str | None

    @property
    def model(self) -> str:
        """The model's name and version."""
        return f"{self.recipe.model.name} {self.recipe.model.version}"


def read_question(path: Path) -> Question:
    """Return what the recipe at `path` asks; `RecipeError` (2) for one without `[tune]` or with a bad space.

    Raises `UnsupportedError` (12) where the libraries of searches are not installed.
    """
    recipe = read_recipe(path)
    if recipe.tune is None:
        raise RecipeError(f"{path} has no [tune], so there is nothing to search", fix=EXAMPLE)
    # All of them now: the picture comes last, after hours of trials.
    require_installed("tune", ("optuna", "matplotlib"), extra="search")
    tables = read_tables(path)
    if recipe.tune.architecture is None:
        space = make_space(tables, recipe.folder, recipe.tune.space)
        return Question(path, recipe, recipe.tune, tables, space, None)
    from exporter.search.architecture import architecture_space

    space, rungs = architecture_space(tables, recipe, recipe.tune.architecture)
    return Question(path, recipe, recipe.tune, tables, space, rungs)


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """How to search: `trials` in all, by every process of the study; `folder` receives what is found.

    `storage` is a URL, or `None` for a journal in `folder`; `seconds` bound when this process begins trials;
    `choose` is `knee`, `constraint` or a trial's number; `None` means the knee, and for an architecture, whose
    latency has a budget already, the best within it.
    """

    study: str
    storage: str | None
    folder: Path
    trials: int
    seconds: float | None = None
    choose: str | None = None

    @property
    def url(self) -> str:
        """The storage's URL."""
        return self.storage if self.storage is not None else str(self.folder / JOURNAL)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The end of a search: what was found, where it was written, and the chosen recipe."""

    findings: Findings
    files: tuple[Path, ...]
    recipe: TunedRecipe


MakeEvaluate = Callable[[Path], tuple[Evaluate, str | None]]
"""Returns what evaluates trials, given its scratch folder, and the metric's name; not called if there is no trial to run."""


def tune(question: Question, request: TuneRequest, make_evaluate: MakeEvaluate, progress: Progress) -> Tuned:
    """Join the study, run trials until it has `request.trials`, and write what it has found.

    Raises what the storage, the first failing trials and `choose` raise, and `UsageError` in a launcher's group
    of processes. What was found so far is in the storage whatever is raised.
    """
    from exporter.search.running import Search, read_points, run_trials
    from exporter.search.storage import speaking_of
    from exporter.search.study import counted, open_study
    from exporter.training.distributed import process_count

    if process_count() > 1:
        raise UsageError(
            "tune runs in one process of its own, and a launcher has started several",
            fix="start edge-export tune several times with one --storage; each runs trials of the same study",
        )
    _make_folder(request.folder)
    goals = goals_of(question.table.objectives, question.recipe.data.metric)
    study = open_study(request.url, request.study, goals, question.tables)

    def guard() -> contextlib.AbstractContextManager[None]:
        return speaking_of(request.url)

    with guard():
        begun = counted(study.get_trials(deepcopy=False))
        is_new = "original" not in study.user_attrs
    if len(begun) < request.trials or is_new:
        with scratch_folder("tune") as scratch:
            evaluate, metric_name = make_evaluate(scratch)
            goals = goals_of(question.table.objectives, metric_name)
            if is_new:
                _keep_original(study, evaluate, metric_name, scratch, progress, guard)
            with guard():
                evaluate.compare_with(TrialFigures(**study.user_attrs["original"]))
            strategy = _strategy(question, request)
            search = Search(
                question.space, question.table, goals, evaluate, strategy, scratch, progress, guard
            )
            run_trials(study, search, total=request.trials, seconds=request.seconds)
    with guard():
        points = read_points(study, question.space, question.table.limits)
        attributes = study.user_attrs
    goals = goals_of(question.table.objectives, attributes.get("metric"))
    how = request.choose or ("knee" if question.rungs is None else "constraint")
    chosen, why = choose(how, points, goals, question.table.limits)
    original = TrialFigures(**attributes["original"]) if "original" in attributes else None
    findings = Findings(
        request.study,
        masked(request.url),
        question.model,
        goals,
        question.table.limits,
        original,
        points,
        front(points, goals),
        chosen,
        why,
    )
    return _written(question, request, findings)


def _make_folder(folder: Path) -> None:
    """Find out before the work, not after it, whether `folder` can be written."""
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise UsageError(
                f"--out: {folder} cannot be a folder: {error.strerror}",
                fix="name a folder that can be written",
            ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"--out: {folder} cannot be written", fix="change its permissions, or name another folder"
        )


def _strategy(question: Question, request: TuneRequest) -> Strategy:
    table = question.table
    if table.architecture is None:
        from exporter.search.running import TreeSearch

        return TreeSearch(table.seed)
    from exporter.search.architecture import Halving

    return Halving(table.architecture, question.space.knobs, table.seed, request.trials)


def _keep_original(
    study: optuna.Study,
    evaluate: Evaluate,
    metric_name: str | None,
    scratch: Path,
    progress: Progress,
    guard: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Measure the model as it was loaded, for the front to be seen against; once in a study's life."""
    from exporter.artifacts import to_plain

    (scratch / "original").mkdir(parents=True, exist_ok=True)
    with progress.step("measuring the original"):
        figures = evaluate.original(scratch / "original")
    with guard():
        study.set_user_attr("metric", metric_name)
        study.set_user_attr("original", to_plain(figures))


def _written(question: Question, request: TuneRequest, findings: Findings) -> Tuned:
    values = dict(findings.chosen.values)
    if question.rungs is not None and question.table.architecture is not None:
        # A candidate that was stopped early was found by a short training, and deserves the long one.
        values[question.rungs] = question.table.architecture.epochs[-1]
    files = write_study(findings, request.folder)
    return Tuned(findings, files, write_tuned(question.path, question.space, values, request.folder))

"""Trials of a study, one after another in this process, while others may do the same on the same storage.

Ask and tell are Optuna's; what a trial is, when it is stopped and how its failure is kept are decided here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from exporter.artifacts import to_plain
from exporter.errors import EdgeError, GateError, ResourceError
from exporter.progress import Progress
from exporter.recipe.compression import training_of
from exporter.recipe.recipe import Recipe
from exporter.recipe.tune import ConstraintsTable, TuneTable
from exporter.search.points import Outcome, Point
from exporter.search.space import Space
from exporter.search.stopping import LATENCY_NOISE, Course, excesses, trails
from exporter.search.study import (
    WORKER,
    counted,
    discard,
    failure_of,
    is_surplus,
    queue_first,
    queue_lost_again,
    this_worker,
)
from exporter.search.trial import Evaluate, Goal, Report, TrialFigures, TrialStopped

ALIKE_FAILURES = 3
"""So many first trials that fail for one cause mean that the recipe is at fault, not its values."""
_FIGURES, _SCREENED, _VALIDATIONS, _SCHEDULE = "figures", "screened", "validations", "schedule"


class Strategy(Protocol):
    """What proposes the values of trials."""

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler of this search."""

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Whether there is nothing left worth proposing."""


@dataclass(frozen=True, slots=True)
class Search:
    """All that one process needs to work on a study; `folder` is its scratch."""

    space: Space
    table: TuneTable
    goals: tuple[Goal, ...]
    evaluate: Evaluate
    strategy: Strategy
    folder: Path
    progress: Progress
    guard: Callable[[], Any]
    """Returns the context in which the storage is spoken to, so that its failures are told as such."""


def run_trials(study: optuna.Study, search: Search, *, total: int, seconds: float | None = None) -> None:
    """Run trials until the study counts `total` of them, by all processes together, or `seconds` are over.

    A trial that fails with an `EdgeError` is recorded with its cause and the study goes on; when the first
    three of a study fail alike, that error is raised. Ctrl-C discards the trial under way, queues its values
    again, and is raised.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    study.sampler = search.strategy.sampler()
    with search.guard():
        for number in queue_lost_again(study):
            search.progress.say(
                f"trial {number} was lost when its process was killed; its values are tried again"
            )
        queue_first(study, _own_draw(search.space))
    with search.progress.step("trials", total) as advance:
        while deadline is None or time.monotonic() < deadline:
            with search.guard():
                begun = counted(study.get_trials(deepcopy=False))
                over = len(begun) >= total or search.strategy.is_exhausted(study)
            advance(sum(trial.state.is_finished() for trial in begun))
            if over or not _run_one(study, search, total):
                break


def _own_draw(space: Space) -> dict[str, Any] | None:
    own = space.own_values()
    return None if own is None else {knob.key: knob.drawn(own[knob.key]) for knob in space.knobs}


def _run_one(study: optuna.Study, search: Search, total: int) -> bool:
    """Run one trial and record it; return whether there may be more to do."""
    with search.guard():
        trial = study.ask({knob.key: knob.distribution() for knob in search.space.knobs})
        trial.set_user_attr(WORKER, this_worker())
        trials = study.get_trials(deepcopy=False)
        if is_surplus(trial.number, trials, total):
            discard(study, trial, "surplus: another process began the last trial", again=False)
            return False
    folder = search.folder / f"{trial.number:04d}"
    try:
        with search.progress.step(f"trial {trial.number}: {_phrase(_values(search.space, trial.params))}"):
            figures = _twin(trial, trials, search) or _figures(trial, study, search, folder)
    except TrialStopped as stopped:
        _tell(study, trial, search, TrialState.PRUNED, {"reason": stopped.reason})
    except EdgeError as error:
        _fail(study, trial, search, error)
    except MemoryError:
        exhausted = ResourceError("memory ran out", fix="search smaller models, or close other programs")
        _fail(study, trial, search, exhausted)
    except BaseException as end:
        with search.guard():
            discard(
                study, trial, f"interrupted: {type(end).__name__}", again=isinstance(end, KeyboardInterrupt)
            )
        raise
    else:
        _complete(study, trial, search, figures)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _figures(trial: optuna.Trial, study: optuna.Study, search: Search, folder: Path) -> TrialFigures:
    """Return the trial's figures, having looked at what its untrained artifact already shows."""
    recipe = search.space.variant(_values(search.space, trial.params))
    folder.mkdir(parents=True, exist_ok=True)
    screened = search.evaluate.screen(recipe, folder / "screen")
    if screened is not None:
        with search.guard():
            trial.set_user_attr(_SCREENED, to_plain(screened))
        broken = excesses(screened, search.table.limits, noise=LATENCY_NOISE)
        if broken:
            raise TrialStopped(f"before training: {broken[0].sentence}")
    return search.evaluate(recipe, folder / "full", _reporter(trial, study, search, recipe, screened))


def _reporter(
    trial: optuna.Trial, study: optuna.Study, search: Search, recipe: Recipe, screened: TrialFigures | None
) -> Report:
    """Return what keeps a trial's validations, and stops it when it trails its competitors."""
    schedule = _schedule(recipe)
    heard: list[float] = []
    with search.guard():
        trial.set_user_attr(_SCHEDULE, schedule)

    def report(value: float) -> None:
        heard.append(value)
        with search.guard():
            trial.set_user_attr(_VALIDATIONS, heard)
            if not search.table.early_stop or screened is None:
                return
            finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        course = Course(screened, tuple(heard), schedule)
        peers = [peer for peer in map(_course, finished) if peer is not None]
        if trails(course, peers, search.goals, patience=search.table.patience):
            raise TrialStopped(
                f"after {len(heard)} validations: at best {max(heard):.4g}, below the median of trials as good otherwise"
            )

    return report


def _schedule(recipe: Recipe) -> str:
    trainings = [(step.method, training_of(step, recipe.training)) for step in recipe.compress]
    return ", ".join(f"{method} {training.epochs}" for method, training in trainings if training is not None)


def _course(trial: FrozenTrial) -> Course | None:
    attrs = trial.user_attrs
    if _FIGURES not in attrs or _VALIDATIONS not in attrs:
        return None
    return Course(TrialFigures(**attrs[_FIGURES]), tuple(attrs[_VALIDATIONS]), attrs.get(_SCHEDULE, ""))


def _twin(trial: optuna.Trial, trials: list[FrozenTrial], search: Search) -> TrialFigures | None:
    """Return the figures of a finished trial with the same values: with fixed seeds it would give them again."""
    for other in trials:
        if (
            other.state is TrialState.COMPLETE
            and other.params == trial.params
            and _FIGURES in other.user_attrs
        ):
            with search.guard():
                trial.set_user_attr("same_as", other.number)
            return TrialFigures(**other.user_attrs[_FIGURES])
    return None


def _complete(study: optuna.Study, trial: optuna.Trial, search: Search, figures: TrialFigures) -> None:
    try:
        values = [goal.value(figures) for goal in search.goals]
    except KeyError as missing:
        error = GateError(
            f"objective {missing.args[0]} was not measured",
            fix="give labelled data, or make `measure` return it",
        )
        _fail(study, trial, search, error)
        return
    with search.guard():
        trial.set_user_attr(_FIGURES, to_plain(figures))
        for name, amount in _limits(figures, search.table.limits).items():
            trial.set_constraint(name, amount)
        study.tell(trial, values)


def _limits(figures: TrialFigures, limits: ConstraintsTable) -> dict[str, float]:
    """Return every limit's excess as Optuna wants it: above 0 where it is broken."""
    broken = {excess.limit: excess.amount for excess in excesses(figures, limits)}
    given = [name for name, value in limits.model_dump().items() if value is not None]
    return {name: broken.get(name, 0.0) for name in given}


def _tell(
    study: optuna.Study, trial: optuna.Trial, search: Search, state: TrialState, attributes: Mapping[str, str]
) -> None:
    with search.guard():
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        study.tell(trial, state=state)


def _fail(study: optuna.Study, trial: optuna.Trial, search: Search, error: EdgeError) -> None:
    """Record a failure; raise it if the study has seen nothing else so far."""
    _tell(study, trial, search, TrialState.FAIL, failure_of(error))
    trials = [trial for trial in counted(study.get_trials(deepcopy=False)) if trial.state.is_finished()]
    causes = {trial.user_attrs.get("cause") for trial in trials}
    if len(trials) >= ALIKE_FAILURES and causes == {error.cause}:
        raise error


def _values(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    return {knob.key: knob.value(params[knob.key]) for knob in space.knobs if knob.key in params}


def _phrase(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


# --- what the storage holds, as plain data ---------------------------------------------------------------


def read_points(study: optuna.Study, space: Space, limits: ConstraintsTable) -> tuple[Point, ...]:
    """Return the study's counted trials in order, held against `limits` as they are now."""
    return tuple(_point(trial, space, limits) for trial in counted(study.get_trials(deepcopy=False)))


_OUTCOMES = {
    TrialState.COMPLETE: Outcome.COMPLETE,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
    TrialState.RUNNING: Outcome.RUNNING,
}


def _point(trial: FrozenTrial, space: Space, limits: ConstraintsTable) -> Point:
    attrs = trial.user_attrs
    figures = TrialFigures(**attrs[_FIGURES]) if _FIGURES in attrs else None
    complete = trial.state is TrialState.COMPLETE
    return Point(
        number=trial.number,
        outcome=_OUTCOMES[trial.state],
        values=_values(space, trial.params),
        objectives=tuple(trial.values) if complete else (),
        figures=figures,
        screened=TrialFigures(**attrs[_SCREENED]) if _SCREENED in attrs else None,
        validations=tuple(attrs.get(_VALIDATIONS, ())),
        broken=() if figures is None else tuple(excess.sentence for excess in excesses(figures, limits)),
        reason=attrs.get("reason") or attrs.get("cause") or "",
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
        worker=attrs.get(WORKER, ""),
    )


@dataclass(frozen=True, slots=True)
class TreeSearch:
    """The usual strategy: tree-structured Parzen estimators for several objectives (Ozaki et al. 2022).

    Trials of other processes that still run count as bad (constant liar), so that parallel trials spread.
    Every trial is drawn from a generator of its own, seeded with `seed` plus the trial's number: processes
    never draw alike, and a study that one process works on is drawn alike again.
    """

    seed: int

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        return _SeededByNumber(self.seed)

    def is_exhausted(self, study: optuna.Study) -> bool:  # noqa: ARG002
        """Never: values that were tried before cost nothing to try again."""
        return False


class _SeededByNumber(optuna.samplers.BaseSampler):
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inner = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner = optuna.samplers.TPESampler(
            seed=self._seed + trial.number, multivariate=True, constant_liar=True
        )
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)

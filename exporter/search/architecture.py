"""Architecture search: width, depth and kernel of a catalogue family under a latency that this host measures.

Two ideas, each with its source:

*Latency is measured, not modelled*, on the artifact itself, of an untrained network: latency does not depend on
weights (the measured objective of MnasNet, Tan et al. 2019; Cai et al. 2020 look it up in a table of measured
layers). What breaks the budget is rejected before training; so is, unmeasured, whatever is at least as wide, as
deep and as large in its kernels as something that was rejected.

*Training stops early for most*: asynchronous successive halving (Li et al. 2020, after Hyperband, Li et al. 2018).
Every candidate is distilled for a few epochs; the best of a rung go on to more. Which comes next is decided from
what the study holds, so any number of processes work on one search and none waits.

Proposals are random at first, then half of them mutations of good candidates (regularised evolution's tournament,
Real et al. 2019). There is no weight sharing: a candidate that is promoted is trained anew, with the learning rate
schedule of its longer training, which costs up to the sum of the shorter ones more. Rankings after few epochs are
not those after many; the rungs, not this method, say how well they agree.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from exporter.errors import RecipeError
from exporter.recipe.compression import StudentTable, training_of
from exporter.recipe.recipe import Recipe
from exporter.recipe.tune import ArchitectureTable, KnobTable
from exporter.search.space import Knob, Space, make_space
from exporter.search.study import counted

FEWEST_PARENTS = 4
"""Evolution begins when so many candidates have been trained."""
_TOURNAMENT = 3
Candidate = tuple[Any, ...]
"""Values of the architecture's knobs as Optuna stores them, in the order of the knobs."""


def architecture_space(
    tables: Mapping[str, Any], recipe: Recipe, table: ArchitectureTable
) -> tuple[Space, str]:
    """Return the space of `[tune.architecture]`, and the key of the epochs, which are its rungs.

    Raises `RecipeError` for a recipe without a student of a family, or with nothing that trains it, and for
    values that the family does not take, as far as the recipe's models tell.
    """
    student, trained = _steps(recipe)
    family = [] if table.family is None else [("family", (table.family,))]
    shape = [("width", table.width), ("depth", table.depth)]
    options = {**({"kernel": table.kernel} if table.kernel else {}), **table.options}
    own = [(f"options.{name}", choices) for name, choices in options.items()]
    epochs = f"compress.{trained}.train.epochs"
    knobs = {f"compress.{student}.{name}": choices for name, choices in (*family, *shape, *own)}
    space = {
        key: KnobTable(choices=tuple(choices)) for key, choices in {**knobs, epochs: table.epochs}.items()
    }
    return make_space(tables, recipe.folder, space), epochs


def _steps(recipe: Recipe) -> tuple[int, int]:
    """Return the numbers of the student step and of the step that trains it."""
    methods = [step.method for step in recipe.compress]
    families = [isinstance(step, StudentTable) and step.family is not None for step in recipe.compress]
    student = families.index(True) if True in families else None
    if student is None:
        raise RecipeError(
            "[tune.architecture] searches a student, and the recipe has no step of that kind",
            fix='add [[compress]] with method = "student" and family = "…" (edge-export students lists them)',
        )
    if "distill" in methods[student:]:
        return student, methods.index("distill", student)
    if training_of(recipe.compress[student], recipe.training) is not None:
        return student, student
    raise RecipeError(
        f"[tune.architecture]: nothing trains the student of compress.{student}",
        fix='add [[compress]] with method = "distill" after it',
    )


@dataclass(frozen=True, slots=True)
class Halving:
    """The strategy: asynchronous successive halving over `candidates`, with `total` trials in the study.

    `knobs` are the space's, the last one the epochs.
    """

    table: ArchitectureTable
    knobs: tuple[Knob, ...]
    seed: int
    total: int

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        return _HalvingSampler(self)

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Whether every candidate was tried, and none is to be promoted now."""
        trials = study.get_trials(deepcopy=False)
        waiting = any(trial.state is TrialState.WAITING for trial in trials)
        return not waiting and self.propose(counted(trials), len(trials)) is None

    def propose(self, trials: Sequence[FrozenTrial], number: int) -> tuple[Candidate, int] | None:
        """Return the next candidate and its rung for trial `number`, or `None` when there is nothing to do."""
        ladder = self._ladder(trials)
        return (
            self._last_call(ladder, len(trials))
            or self._promotion(ladder, share=self.table.keep_one_in)
            or self._newcomer(ladder, random.Random(f"{self.seed}/{number}"))
            or self._promotion(ladder, share=None)
        )

    # --- what is known -----------------------------------------------------------------------------------

    def _ladder(self, trials: Sequence[FrozenTrial]) -> _Ladder:
        keys = [knob.key for knob in self.knobs[:-1]]
        ladder = _Ladder([{} for _ in self.table.epochs], [set() for _ in self.table.epochs], set())
        for trial in trials:
            if not {*keys, self.knobs[-1].key} <= trial.params.keys():
                continue
            candidate = tuple(trial.params[key] for key in keys)
            rung = self.table.epochs.index(trial.params[self.knobs[-1].key])
            ladder.begun[rung].add(candidate)
            if trial.state is TrialState.COMPLETE:
                figures = trial.user_attrs["figures"]
                if figures["latency_ms"] <= self.table.latency_ms and figures["metric"] is not None:
                    ladder.scores[rung][candidate] = figures["metric"]
            elif trial.state is TrialState.PRUNED and "before training" in trial.user_attrs.get("reason", ""):
                ladder.rejected.add(candidate)
        return ladder

    def _last_call(self, ladder: _Ladder, begun: int) -> tuple[Candidate, int] | None:
        """Return the best candidate's next rung when only as many trials are left as it needs to the top."""
        for rung in range(len(ladder.scores) - 1, -1, -1):
            if ladder.scores[rung]:
                to_go = len(ladder.scores) - 1 - rung
                best = ladder.ranked(rung)[0]
                near_the_end = to_go > 0 and self.total - begun <= to_go
                return (best, rung + 1) if near_the_end and best not in ladder.begun[rung + 1] else None
        return None

    def _promotion(self, ladder: _Ladder, *, share: int | None) -> tuple[Candidate, int] | None:
        """Return a candidate among the best 1/`share` of its rung that is not promoted yet, highest rung first.

        Without `share` the best of a rung is promoted however few there are: nobody else will come.
        """
        for rung in range(len(ladder.scores) - 2, -1, -1):
            ranked = ladder.ranked(rung)
            count = len(ranked) // share if share is not None else min(1, len(ranked))
            for candidate in ranked[:count]:
                if candidate not in ladder.begun[rung + 1]:
                    return candidate, rung + 1
        return None

    # --- proposals ---------------------------------------------------------------------------------------

    def _newcomer(self, ladder: _Ladder, dice: random.Random) -> tuple[Candidate, int] | None:
        fresh = [
            c for c in self._candidates() if c not in ladder.begun[0] and not self._is_hopeless(c, ladder)
        ]
        if not fresh:
            return None
        trained = ladder.ranked(0)
        if len(trained) >= FEWEST_PARENTS and dice.random() < 0.5:
            parent = min(dice.sample(trained, _TOURNAMENT), key=trained.index)
            children = [child for child in fresh if self._distance(parent, child) == 1]
            if children:
                return dice.choice(children), 0
        return dice.choice(fresh), 0

    def _candidates(self) -> Iterator[Candidate]:
        return itertools.product(*(_categories(knob) for knob in self.knobs[:-1]))

    def _is_hopeless(self, candidate: Candidate, ladder: _Ladder) -> bool:
        """Whether something no larger in any respect was too slow already."""
        return any(
            all(_is_no_larger(slow, own) for slow, own in zip(rejected, candidate, strict=True))
            for rejected in ladder.rejected
        )

    def _distance(self, one: Candidate, other: Candidate) -> int:
        """Return how many steps between neighbouring choices lie between two candidates."""
        lists = [_categories(knob) for knob in self.knobs[:-1]]
        return sum(
            abs(choices.index(a) - choices.index(b)) for choices, a, b in zip(lists, one, other, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Ladder:
    """Rung by rung: scores of the candidates trained there within the budget, and all that were begun there."""

    scores: list[dict[Candidate, float]]
    begun: list[set[Candidate]]
    rejected: set[Candidate]

    def ranked(self, rung: int) -> list[Candidate]:
        """Return the candidates of a rung, best first; of equals the one that was trained first."""
        return sorted(self.scores[rung], key=lambda candidate: -self.scores[rung][candidate])


def _categories(knob: Knob) -> list[Any]:
    return [knob.drawn(choice) for choice in knob.table.choices or ()]


def _is_no_larger(slow: Any, own: Any) -> bool:
    """Whether a choice cannot be faster than the one that was too slow: equal, or a larger number."""
    if isinstance(slow, str | bool) or isinstance(own, str | bool) or slow is None or own is None:
        return bool(slow == own)
    return bool(slow <= own)


class _HalvingSampler(optuna.samplers.BaseSampler):
    """Gives a trial the values that `Halving` proposes."""

    def __init__(self, strategy: Halving) -> None:
        self._strategy = strategy

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:  # noqa: ARG002
        """Return all of the space: a candidate's values belong together."""
        return {knob.key: knob.distribution() for knob in self._strategy.knobs}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the proposed candidate and its epochs."""
        others = [
            other for other in counted(study.get_trials(deepcopy=False)) if other.number != trial.number
        ]
        proposal = self._strategy.propose(others, trial.number)
        knobs = self._strategy.knobs
        if proposal is None:  # another process took the last one a moment ago
            return {key: distribution.choices[0] for key, distribution in search_space.items()}
        candidate, rung = proposal
        return {
            knob.key: value
            for knob, value in zip(knobs, (*candidate, self._strategy.table.epochs[rung]), strict=True)
        }

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,  # noqa: ARG002
        param_distribution: Any,
    ) -> Any:
        """Return the first choice: only a trial queued with some of its values comes here."""
        return param_distribution.choices[0]

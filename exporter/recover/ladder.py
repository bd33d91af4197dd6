"""Climb from cheap to dear until the budget holds: ranges, recovery methods, wider layers, float layers.

Every rung is measured on the evaluation data. A rung that helped carries the next one; one that did not is dropped.
What is spared at the end, a set of layers in int8 or float, is found by measured sensitivity and is no larger than
needed: without any one of its layers the budget breaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.artifacts import Drop, Recovery, Rung, to_plain
from exporter.errors import EdgeError, GateError, UnsupportedError
from exporter.progress import Progress
from exporter.recover.candidates import MEASURED, SIGNIFICANT, Candidates
from exporter.recover.judge import Judge, Verdict
from exporter.recover.methods.base import Candidate, Workbench
from exporter.recover.rungs import Step
from exporter.recover.smallest import smallest_passing
from exporter.schemes import Method, Scheme

TOLERATED_DECIBELS = 0.5
"""A rung may lose this much signal if it wins points: points are coarse on small sets, decibels are not."""
NAMED_LAYERS = 5


@dataclass(frozen=True, slots=True)
class Budget:
    """Points that may be lost (`None`: no limit), and how a drop is read: "measured" or "significant".

    Significant: only a loss that exceeds the budget beyond the noise of the evaluation set breaks it.
    """

    points: float | None
    verdict: str = MEASURED

    def holds(self, drop: Drop | None) -> bool:
        """Whether `drop` is within the budget; a drop that could not be measured is not."""
        if self.points is None:
            return True
        if drop is None:
            return False
        return (drop.low if self.verdict == SIGNIFICANT else drop.points) <= self.points + 1e-9


@dataclass(slots=True)
class _Best:
    candidate: Candidate
    verdict: Verdict
    rule: str
    left_float: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ladder:
    """One scheme's way up. `rules` are tried in order, then `steps`; `climbs` says whether layers may be spared."""

    scheme: Scheme
    budget: Budget
    judge: Judge
    bench: Workbench
    candidates: Candidates
    rules: tuple[str, ...]
    steps: tuple[Step, ...]
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def climb(self) -> tuple[Candidate, Recovery]:
        """Return the first candidate within the budget, and the trace.

        Without a budget every step is taken in order, whatever it gives. Raises `GateError` (14) with the trace, the
        best reached and the layers that resist, when nothing holds.
        """
        started = time.monotonic()
        rungs: list[Rung] = []
        if self.budget.points is not None:
            self.judge.require_metric()
        best = self._rule(self.rules[0], rungs)
        for rule in self.rules[1:]:
            if self._done(rungs):
                break
            best = self._better(best, self._rule(rule, rungs), rungs)
        for step in self.steps:
            if self._done(rungs):
                break
            best = self._step(step, best, rungs)
        ranked: Mapping[str, float] = {}
        if self.budget.points is not None and not self._done(rungs):
            ranked = self._ranking(best)
            best = self._spare_layers(best, ranked, rungs)
        recovery = self._recovery(rungs, best, time.monotonic() - started)
        if self.budget.points is not None and not self._done(rungs):
            raise self._refusal(recovery, ranked)
        return best.candidate, recovery

    # -- rungs --

    def _rule(self, rule: str, rungs: list[Rung]) -> _Best:
        started = time.monotonic()
        name = f"{rule} ranges" if self.scheme.needs_calibration else "plain rounding"
        with self.progress.step(f"{self.scheme}: {name}"):
            candidate = self.candidates.start(rule)
            best = _Best(candidate, self._judged(candidate), rule)
        rungs.append(self._rung(name, best, started, kept=not rungs, changed=1))
        return best

    def _step(self, step: Step, best: _Best, rungs: list[Rung]) -> _Best:
        started = time.monotonic()
        with self.progress.step(f"{self.scheme}: {step.name}"):
            recovered = step.apply(best.candidate, self._bench(best))
            if not recovered.changed:
                rungs.append(_idle(step.name, recovered.details, time.monotonic() - started))
                return best
            candidate = self.candidates.refreshed(recovered.candidate, best.candidate, best.rule)
            tried = replace_best(best, candidate, self._judged(candidate))
        rungs.append(
            self._rung(
                step.name, tried, started, kept=False, changed=recovered.changed, details=recovered.details
            )
        )
        return self._better(best, tried, rungs)

    def _better(self, best: _Best, tried: _Best, rungs: list[Rung]) -> _Best:
        """Return what the next rung stands on; without a budget the recipe asked for every step."""
        if self.budget.points is None or self._done(rungs) or _improves(tried.verdict, best.verdict):
            rungs[-1] = replace(rungs[-1], kept=True)
            return tried
        return best

    def _spare_layers(self, best: _Best, ranked: Mapping[str, float], rungs: list[Rung]) -> _Best:
        if self.scheme.method is Method.WEIGHT_ONLY and self.scheme.weight_bits == 4:
            best = self._spare("int8 layers", best, tuple(ranked), self._widen, rungs)
            if self._done(rungs):
                return best
            # Not even int8 everywhere holds: look for float layers from there, then narrow what can be.
            best = self._widen(best, tuple(ranked))
        best = self._spare("float layers", best, tuple(ranked), self._leave_float, rungs, spares_all=True)
        if self._done(rungs) and best.widened:
            kept_wide = tuple(name for name in best.widened if name not in best.left_float)
            best = self._spare("int8 layers again", replace_best(best), kept_wide, self._widen, rungs)
        return best

    def _spare(
        self,
        name: str,
        best: _Best,
        ranked: tuple[str, ...],
        sparing: Callable[[_Best, tuple[str, ...]], _Best],
        rungs: list[Rung],
        *,
        spares_all: bool = False,
    ) -> _Best:
        """Find the smallest set of layers that `sparing` must spare for the budget to hold; note it as a rung.

        With `spares_all` nothing would be left of the scheme if every one of `ranked` were spared.
        """
        started, tests = time.monotonic(), 0
        reached: dict[tuple[str, ...], _Best] = {}
        with self.progress.step(f"{self.scheme}: {name}") as advance:

            def passes(names: tuple[str, ...]) -> bool:
                nonlocal tests
                tests += 1
                advance(tests)
                spared = sparing(best, names)
                spared.verdict = self._judged(spared.candidate)
                reached[names] = spared
                return self.budget.holds(spared.verdict.drop)

            found = smallest_passing(ranked, passes)
            if found is None and spares_all:
                found = _all_but_one(ranked, passes)
        chosen = reached[found] if found is not None else max(reached.values(), key=_merit, default=best)
        rungs.append(
            self._rung(
                name,
                chosen,
                started,
                kept=found is not None,
                changed=len(found or ()),
                details={"evaluations": tests, "candidates": len(ranked)},
            )
        )
        return chosen if found is not None else best

    def _leave_float(self, best: _Best, names: tuple[str, ...]) -> _Best:
        candidate = self.candidates.keeping(best.candidate, names, best.rule)
        return replace_best(best, candidate, left_float=names)

    def _widen(self, best: _Best, names: tuple[str, ...]) -> _Best:
        asked = {name: bits for name, bits in best.candidate.encodings.bits.items() if bits != 8}
        encodings = replace(best.candidate.encodings, bits={**asked, **dict.fromkeys(names, 8)})
        return replace_best(best, Candidate(best.candidate.model, encodings), widened=names)

    def _ranking(self, best: _Best) -> dict[str, float]:
        """Return decibels of SQNR with one operator alone quantised, for each, the most harmful first.

        Sparing one operator of a quantised graph would say too little: an activation that suffers is quantised where
        it is written and again where it is read, and only sparing both brings it back.
        """
        names = self.candidates.spareable(best.candidate)
        alone: dict[str, float] = {}
        with self.progress.step(f"{self.scheme}: sensitivity of {len(names)} layers", len(names)) as advance:
            for number, name in enumerate(names, start=1):
                others = tuple(other for other in names if other != name)
                candidate = self.candidates.keeping(best.candidate, others, best.rule)
                alone[name] = self.judge.probe(self.bench.quantize(candidate))
                advance(number)
        return dict(sorted(alone.items(), key=lambda item: item[1]))

    def _bench(self, best: _Best) -> Workbench:
        """Return the workbench on which ranges are chosen by the rule that `best` stands on."""
        return replace(self.bench, encode=lambda model, keep: self.candidates.ranges(model, keep, best.rule))

    # -- judging --

    def _judged(self, candidate: Candidate) -> Verdict:
        try:
            return self.judge.judge(self.bench.quantize(candidate))
        except UnsupportedError:
            if candidate.encodings.keep:
                return _NOTHING  # every operator is spared: no artifact of this scheme is left
            raise

    def _done(self, rungs: Sequence[Rung]) -> bool:
        return self.budget.points is not None and bool(rungs) and bool(rungs[-1].holds)

    def _rung(
        self,
        name: str,
        best: _Best,
        started: float,
        *,
        kept: bool,
        changed: int,
        details: Mapping[str, Any] | None = None,
    ) -> Rung:
        verdict = best.verdict
        holds = self.budget.holds(verdict.drop) if self.budget.points is not None else None
        return Rung(
            name, verdict.drop, verdict.value, verdict.sqnr_db, holds, kept or bool(holds), changed,
            best.left_float, best.widened, round(time.monotonic() - started, 3), dict(details or {}),
        )  # fmt: skip

    def _recovery(self, rungs: Sequence[Rung], best: _Best, seconds: float) -> Recovery:
        return Recovery(
            scheme=str(self.scheme),
            metric=self.judge.metric_name,
            reference=self.judge.reference,
            samples=self.judge.count,
            budget=self.budget.points,
            verdict=self.budget.verdict,
            rungs=tuple(rungs),
            left_float=best.left_float,
            widened=best.widened,
            seconds=round(seconds, 3),
            notes=tuple(self.notes),
        )

    def _refusal(self, recovery: Recovery, ranked: Mapping[str, float]) -> EdgeError:
        tried = [rung for rung in recovery.rungs if rung.drop is not None]
        closest = min(tried, key=lambda rung: rung.drop.points if rung.drop else 0.0, default=None)
        resisting = dict(list(ranked.items())[:NAMED_LAYERS])
        layers = ", ".join(f"{name} ({alone:.1f} dB alone)" for name, alone in resisting.items())
        reached = "nothing measurable"
        if closest is not None and closest.drop is not None:
            reached = f"{_points(closest.drop)} by {closest.name}"
        noise = ""
        if closest is not None and closest.drop is not None and closest.drop.is_noise:
            noise = f", which {closest.drop.samples} evaluation samples cannot tell from none"
        return GateError(
            f"{self.scheme}: no rung keeps max_drop = {self.budget.points:g} points of {recovery.metric}; "
            f"the best reached is {reached}{noise}; layers that resist: {layers or 'none stands out'}",
            fix='raise max_drop, add evaluation samples, set max_drop_verdict = "significant", train the model for '
            'it ([[compress]] method = "qat"), or take a wider scheme',
            details={"recovery": to_plain(recovery), "resisting": resisting},
        )


_NOTHING = Verdict(None, -200.0, None)


def replace_best(
    best: _Best, candidate: Candidate | None = None, verdict: Verdict | None = None, **changes: Any
) -> _Best:
    """Return `best` with what is given changed."""
    return replace(best, candidate=candidate or best.candidate, verdict=verdict or best.verdict, **changes)


def _all_but_one(
    ranked: tuple[str, ...], passes: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...] | None:
    """Return a passing set that leaves the least harmful operator it can quantised; `None` if none passes."""
    for left in reversed(ranked):
        others = tuple(name for name in ranked if name != left)
        if others and passes(others):
            return smallest_passing(others, passes)
    return None


def _improves(tried: Verdict, best: Verdict) -> bool:
    if tried.drop is not None and best.drop is not None and tried.drop.points < best.drop.points - 1e-9:
        return tried.sqnr_db > best.sqnr_db - TOLERATED_DECIBELS
    worse = tried.drop is None or (best.drop is not None and tried.drop.points > best.drop.points + 1e-9)
    return not worse and tried.sqnr_db > best.sqnr_db


def _merit(best: _Best) -> tuple[float, float]:
    drop = best.verdict.drop
    return (-drop.points if drop is not None else -1e9, best.verdict.sqnr_db)


def _idle(name: str, details: Mapping[str, Any], seconds: float) -> Rung:
    return Rung(name, None, None, None, None, False, 0, (), (), round(seconds, 3), dict(details))


def _points(drop: Drop) -> str:
    return f"{drop.points:.2f} points (95 % interval {drop.low:.2f} to {drop.high:.2f})"

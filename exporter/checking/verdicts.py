"""Figures × budget and lock → verdicts. Nothing is left out in silence: what was not measured is a verdict too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from exporter.checking.figures import KINDS, Figures, Key
from exporter.checking.lock import Lock
from exporter.errors import GateError

_TIMES_AND_MEMORY = ("p90_ms", "rss_mb")


class State(StrEnum):
    """How a figure stands."""

    PASSED = "passed"
    FAILED = "failed"
    UNMEASURED = "not measured"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure of one bundle against one line: `rule` is that line, `before` what the lock holds."""

    bundle: str
    artifact: str
    device: str | None
    kind: str
    rule: str
    state: State
    now: float | None = None
    limit: float | None = None
    before: float | None = None

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        place = "" if self.device is None else f" on {self.device}"
        subject = f"{self.bundle} {self.artifact}{place}: {self.kind}"
        if self.kind == "answers":
            return f"{subject} are out of the golden vectors' tolerance"
        unit = f" {KINDS[self.kind].unit}".rstrip()
        if self.now is None:
            how = "is no longer there" if self.state is State.FAILED else "was not measured"
            return f"{subject} {how} ({self.rule})"
        if self.limit is None:
            return f"{subject} is {self.now:.6g}{unit}, and the lock does not know it"
        relation = "at least" if KINDS[self.kind].is_larger_better and self.before is not None else "at most"
        origin = "" if self.before is None else f", locked {self.before:.6g}"
        return (
            f"{subject} is {self.now:.6g}{unit}, {relation} {self.limit:.6g} is allowed{origin} ({self.rule})"
        )


def judge(figures: Figures, lock: Lock | None, devices: Collection[str] = ()) -> list[Verdict]:
    """Return every verdict on one bundle: answers on devices, budgets, then the lock.

    `devices` restricts what devices measured to those; the budget's times and memory then count there even if it is
    this host, which otherwise only the lock speaks of: a budget is meant for the target.
    """
    verdicts = [*_answers(figures, devices), *_budgets(figures, devices)]
    if lock is not None:
        verdicts += _locked(figures, lock, devices)
    return verdicts


def require_passed(verdicts: Sequence[Verdict], *, strict: bool) -> None:
    """Raise `GateError` (14) naming the first line that is broken; `strict` counts what was not measured too."""
    bad = {State.FAILED, *({State.UNMEASURED} if strict else ())}
    failed = [item for item in verdicts if item.state in bad]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    fix = "make it better, or accept it: the same command with --update"
    if failed[0].state is State.UNMEASURED:
        fix = f"measure it: edge-export bench BUNDLE --on WHERE --as {failed[0].device or 'NAME'}"
    elif failed[0].kind == "answers":
        fix = "do not ship it to this device: its runtime computes something else than the one that built it"
    elif failed[0].before is None:
        fix = "make it better, or raise the budget in the recipe and build again"
    raise GateError(f"{failed[0].sentence}{more}", fix=fix)


def _counts(device: str | None, devices: Collection[str]) -> bool:
    return device is None or not devices or device in devices


def _answers(figures: Figures, devices: Collection[str]) -> Iterator[Verdict]:
    for device, facts in figures.devices.items():
        if _counts(device, devices):
            for artifact in facts.wrong:
                yield Verdict(figures.name, artifact, device, "answers", "golden vectors", State.FAILED)


def _budgets(figures: Figures, devices: Collection[str]) -> Iterator[Verdict]:
    for kind, limit in figures.budget.items():
        rule = f"budget.{kind} = {limit:g}"
        if kind == "size_mb":
            for (artifact, _, other), value in figures.values.items():
                if other == kind:
                    yield _ceiling(figures, (artifact, None, kind), rule, value, limit)
            continue
        judged = [
            (name, facts)
            for name, facts in figures.devices.items()
            if _counts(name, devices) and _is_meant(facts.place, kind, is_named=name in devices)
        ]
        if not judged:
            yield Verdict(figures.name, "best file", None, kind, rule, State.UNMEASURED, limit=limit)
        for name, facts in judged:
            found = figures.values.get((facts.best, name, kind)) if facts.best is not None else None
            if found is None:
                yield Verdict(figures.name, "best file", name, kind, rule, State.UNMEASURED, limit=limit)
            else:
                yield _ceiling(figures, (facts.best or "", name, kind), rule, found, limit)


def _is_meant(place: str, kind: str, *, is_named: bool) -> bool:
    is_emulated = place.startswith("emulated")
    if kind in _TIMES_AND_MEMORY:
        return not is_emulated and (place != "local" or is_named)
    return is_emulated


def _ceiling(figures: Figures, key: Key, rule: str, value: float, limit: float) -> Verdict:
    state = State.PASSED if value <= limit else State.FAILED
    return Verdict(figures.name, *key, rule, state, value, limit)


def _locked(figures: Figures, lock: Lock, devices: Collection[str]) -> Iterator[Verdict]:
    before = lock.bundles.get(figures.name, {})
    for key, old in before.items():
        if not _counts(key[1], devices):
            continue
        line = lock.line_of(figures.name, key)
        rule = lock.path.name if line is None else f"{lock.path.name}:{line}"
        now = figures.values.get(key)
        if now is None:
            # What the build itself measures cannot be missing unless the artifact or its evidence went away.
            state = State.FAILED if key[1] is None else State.UNMEASURED
            yield Verdict(figures.name, *key, rule, state, before=old)
        else:
            yield _against(figures, key, rule, old, lock.allow[key[2]])
    for key, value in figures.values.items():
        if key not in before and _counts(key[1], devices):
            yield Verdict(figures.name, *key, lock.path.name, State.NEW, value)


def _against(figures: Figures, key: Key, rule: str, old: float, allowance: float) -> Verdict:
    kind, now = KINDS[key[2]], figures.values[key]
    # Two measurements differ by their noise even when nothing changed.
    slack = allowance if kind.is_absolute else abs(old) * max(allowance, figures.noise.get(key, 0.0))
    limit = old - slack if kind.is_larger_better else old + slack
    is_kept = now >= limit if kind.is_larger_better else now <= limit
    state = State.PASSED if is_kept else State.FAILED
    return Verdict(figures.name, *key, rule, state, now, limit, old)

"""Two bundles or builds → every figure of both, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.checking.figures import KINDS, Figures, Key, bundles_in, read_figures


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in the old bundle and in the new one; None where it was not measured."""

    target: str
    key: Key
    before: float | None
    after: float | None

    @property
    def is_worse(self) -> bool | None:
        """Whether the new figure is worse by more than its kind's allowance; None if there is nothing to compare."""
        if self.before is None or self.after is None:
            return None
        kind = KINDS[self.key[2]]
        slack = kind.allowance if kind.is_absolute else abs(self.before) * kind.allowance
        lost = self.before - self.after if kind.is_larger_better else self.after - self.before
        return lost > slack


def compare_bundles(old: Path, new: Path) -> list[Change]:
    """Return what changed from `old` to `new`, bundles or builds, target by target in the order of figures.

    Raises what `bundles_in` and `read_figures` raise.
    """
    before, after = _by_target(bundles_in([old])), _by_target(bundles_in([new]))
    if len(before) == len(after) == 1:
        # Two bundles named by hand are compared even if they are for different targets.
        (name, first), (_, second) = *before.items(), *after.items()
        return _changes(name, first, second)
    changes: list[Change] = []
    for name in dict.fromkeys([*before, *after]):
        changes += _changes(name, before.get(name), after.get(name))
    return changes


def _by_target(bundles: Sequence[Path]) -> dict[str, Figures]:
    found = [read_figures(bundle) for bundle in bundles]
    return {figures.name.rpartition("/")[2]: figures for figures in found}


def _changes(target: str, old: Figures | None, new: Figures | None) -> list[Change]:
    before = {} if old is None else old.values
    after = {} if new is None else new.values
    order = list(KINDS)
    keys = sorted({*before, *after}, key=lambda key: (key[0], key[1] or "", order.index(key[2])))
    return [Change(target, key, before.get(key), after.get(key)) for key in keys]

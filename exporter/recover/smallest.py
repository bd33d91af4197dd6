"""Find a smallest set that passes a test which is expensive and nearly, not surely, monotone. Knows no models."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def smallest_passing(
    ranked: Sequence[Item], passes: Callable[[tuple[Item, ...]], bool]
) -> tuple[Item, ...] | None:
    """Return a subset of `ranked` (most promising first) that passes and of which no item can be spared.

    A passing prefix is found by doubling and bisection, then every item is tried out of it until none can go: the
    answer is 1-minimal (Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input") even where
    the test is not monotone. The subset keeps the order of `ranked`. `None`: not even the whole passes. The empty
    set is not tried. About 2·log₂ n tests, and n' for each round over a prefix of n'.
    """
    known: dict[tuple[Item, ...], bool] = {}

    def tested(subset: tuple[Item, ...]) -> bool:
        if subset not in known:
            known[subset] = passes(subset)
        return known[subset]

    if not ranked:
        return None
    length = _passing_prefix(len(ranked), lambda size: tested(tuple(ranked[:size])))
    if length is None:
        return None
    subset = tuple(ranked[:length])
    spared = True
    while spared and len(subset) > 1:
        spared = False
        for item in reversed(subset):
            fewer = tuple(other for other in subset if other != item)
            if fewer and tested(fewer):
                subset, spared = fewer, True
    return subset


def _passing_prefix(count: int, passes: Callable[[int], bool]) -> int | None:
    size = 1
    while size < count and not passes(size):
        size *= 2
    high = min(size, count)
    if high == count and not passes(count):
        return None
    low = high // 2 if high > 1 else 0
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle
    return high

"""Which rank each layer gets: pure arithmetic on what ranks cost and what error they leave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """What a layer may become: `whole` parameters as it is, or `per_rank` for each rank of a pair.

    `ranks` fall, each a multiple of the rounding and with fewer parameters than the layer; `errors` are the
    relative errors there.
    """

    name: str
    whole: int
    per_rank: int
    ranks: tuple[int, ...]
    errors: tuple[float, ...]

    def parameters(self, rank: int | None) -> int:
        """Return the weights (biases apart) at `rank`; `None` is the whole layer."""
        return self.whole if rank is None else rank * self.per_rank


@dataclass(frozen=True, slots=True)
class Cut:
    """One step down a layer's curve: to `rank`, for `saved` parameters at `price` of error each."""

    name: str
    rank: int
    saved: int
    price: float


def largest_rank(rows: int, columns: int, round_to: int) -> int:
    """Return the largest multiple of `round_to` at which a pair has fewer parameters than the matrix (0: none)."""
    return (rows * columns - 1) // (rows + columns) // round_to * round_to


def ranks_within_error(curves: Sequence[Curve], max_error: float) -> dict[str, int]:
    """Return the smallest rank of each layer that keeps its own error within `max_error`; others stay whole."""
    ranks = {}
    for curve in curves:
        fitting = [rank for rank, error in zip(curve.ranks, curve.errors, strict=True) if error <= max_error]
        if fitting:
            ranks[curve.name] = min(fitting)
    return ranks


def cheapest_cuts(curves: Sequence[Curve]) -> tuple[Cut, ...]:
    """Return all cuts that lie on the layers' convex hulls, cheapest first.

    The first n of them are the ranks with the least sum of squared relative errors among all choices that
    save as many parameters. A longer start contains a shorter one, so ranks fall as a budget tightens. Ties
    are broken by name.
    """
    cuts = [cut for curve in curves for cut in _hull(curve)]
    return tuple(sorted(cuts, key=lambda cut: (cut.price, cut.name, -cut.rank)))


def _hull(curve: Curve) -> list[Cut]:
    points: list[tuple[int, float, int]] = [(curve.whole, 0.0, 0)]
    for rank, error in zip(curve.ranks, curve.errors, strict=True):
        point = (curve.parameters(rank), error**2, rank)
        while len(points) > 1 and _price(points[-2], points[-1]) >= _price(points[-1], point):
            points.pop()
        points.append(point)
    return [
        Cut(curve.name, after[2], before[0] - after[0], _price(before, after))
        for before, after in itertools.pairwise(points)
    ]


def _price(before: tuple[int, float, int], after: tuple[int, float, int]) -> float:
    # Rounding can make an error fall by 1e-17 where it should stay the same.
    return max(0.0, after[1] - before[1]) / (before[0] - after[0])


def ranks_after(cuts: Sequence[Cut]) -> dict[str, int]:
    """Return each cut layer's rank after `cuts`, in their order."""
    return {cut.name: cut.rank for cut in cuts}


def cuts_that_save(cuts: Sequence[Cut], parameters: float) -> int | None:
    """Return how many of the first cuts save at least `parameters`, or `None` if all do not."""
    saved = 0
    for count, cut in enumerate(cuts, start=1):
        saved += cut.saved
        if saved >= parameters:
            return count
    return None


def fewest_cuts(cuts: Sequence[Cut], size_of: Callable[[int], float], limit: float) -> int | None:
    """Return the least n for which `size_of(n)` is within `limit`, or `None` if all cuts are not enough.

    Sizes fall with n; each is measured, so few are asked for: bisection that begins where the saved
    parameters, at the price the last measurements imply, predict the answer.
    """
    low, high = 0, len(cuts)
    sizes = {0: size_of(0)}
    if sizes[0] <= limit:
        return 0
    if high:
        sizes[high] = size_of(high)
    if sizes[high] > limit:
        return None
    saved = [0, *itertools.accumulate(cut.saved for cut in cuts)]
    turn = 0
    while high - low > 1:
        slope = (sizes[low] - sizes[high]) / max(1, saved[high] - saved[low])
        wanted = saved[low] + (sizes[low] - limit) / slope if slope > 0 else 0.0
        predicted = next((n for n in range(low + 1, high) if saved[n] >= wanted), high - 1)
        # A prediction that is one cut short comes back for ever from the same side; every third is the middle.
        turn += 1
        probe = (low + high) // 2 if turn % 3 == 0 else predicted
        sizes[probe] = size_of(probe)
        low, high = (low, probe) if sizes[probe] <= limit else (probe, high)
    return high


def total_saved(curves: Sequence[Curve], ranks: Mapping[str, int]) -> int:
    """Return how many weights fewer the layers hold at `ranks`."""
    return sum(curve.whole - curve.parameters(ranks[curve.name]) for curve in curves if curve.name in ranks)

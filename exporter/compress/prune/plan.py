"""The order in which channels go, and how far along it a goal lies. Pure decisions; nothing is changed here.

Channels leave in units that keep every count a multiple of `round_to`. All units of all groups form one queue,
least important first; a goal takes a prefix of it. Prefixes are nested, so that budgets can be bisected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporter.compress.prune.edit import Change
from exporter.compress.prune.groups import ChannelGroup
from exporter.compress.prune.importance import Scores


@dataclass(frozen=True, slots=True)
class Unit:
    """Channels of group number `group` that go together; `rank` orders the queue."""

    group: int
    channels: tuple[int, ...]
    rank: float


@dataclass(frozen=True, slots=True)
class Queue:
    """All units in the order in which they go."""

    groups: tuple[ChannelGroup, ...]
    units: tuple[Unit, ...]

    def changes(self, length: int) -> tuple[Change, ...]:
        """Return what the first `length` units change, one change a group."""
        removed: dict[int, list[int]] = {}
        for unit in self.units[:length]:
            removed.setdefault(unit.group, []).extend(unit.channels)
        return tuple(self.groups[number].change(channels) for number, channels in sorted(removed.items()))

    def channels(self, length: int) -> int:
        """Return how many channels the first `length` units take."""
        return sum(len(unit.channels) for unit in self.units[:length])


def queue_up(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Scores],
    *,
    scope: Literal["global", "layer"],
    round_to: int,
    max_layer_ratio: float,
    originals: Mapping[str, int],
) -> Queue:
    """Return the queue of `groups`, whose atoms have `scores`.

    With scope "global" a unit's rank is its mean score; with "layer" it is the share of its group's channels
    that are gone when half of it is, so that a prefix takes the same share everywhere. `originals` are the
    groups' sizes before any round: shares and `max_layer_ratio` refer to them. Ties go by group and position.
    """
    units: list[Unit] = []
    for number, (group, score) in enumerate(zip(groups, scores, strict=True)):
        original = originals.get(group.name, group.size)
        order = np.argsort(score, kind="stable")
        taken = 0
        for kept in kept_counts(group, original, round_to=round_to, max_layer_ratio=max_layer_ratio):
            atoms = order[taken : len(order) - kept]
            taken = len(order) - kept
            channels = tuple(sorted(channel for atom in atoms for channel in group.atoms[atom]))
            gone = original - kept * len(group.atoms[0])
            share = (gone - len(channels) / 2) / original
            units.append(Unit(number, channels, share if scope == "layer" else float(score[atoms].mean())))
    places = {id(unit): place for place, unit in enumerate(units)}
    units.sort(key=lambda unit: (unit.rank, places[id(unit)]))
    return Queue(tuple(groups), tuple(units))


def kept_counts(group: ChannelGroup, original: int, *, round_to: int, max_layer_ratio: float) -> list[int]:
    """Return the numbers of atoms that may stay, descending from the first below all of them."""
    width = len(group.atoms[0])
    least = max(original * (1 - max_layer_ratio), 1)
    # Heads that become narrower feed products of their own: keep those aligned too, where they are wide enough.
    heads = group.heads
    step = round_to if heads and not group.whole_heads and heads.width >= 2 * round_to else 1
    return [
        kept
        for kept in range(len(group.atoms) - 1, 0, -1)
        if kept * width >= least - 1e-9 and kept * width % round_to == 0 and kept % step == 0
    ]


def shortest(count: int, holds: Callable[[int], bool], *, resolution: int = 1) -> int | None:
    """Return the least prefix length up to `count` for which `holds`, by bisection; `None` if none does.

    `holds` must stay true once it is. With a coarser `resolution` the answer may be that much too long; it is
    always one that was tried.
    """
    if not holds(count):
        return None
    low, high = -1, count  # `low` does not hold, or is no length at all
    while high - low > max(1, resolution):
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def length_for_ratio(queue: Queue, wanted: float, scope: Literal["global", "layer"]) -> int | None:
    """Return the prefix that takes nearest to `wanted` channels (scope "layer": a share of each group).

    `None` if the whole queue does not reach it.
    """
    if scope == "layer":
        return sum(unit.rank < wanted for unit in queue.units)
    totals = [0, *np.cumsum([len(unit.channels) for unit in queue.units]).tolist()]
    nearest = min(range(len(totals)), key=lambda length: (abs(totals[length] - wanted), length))
    reachable = totals[-1] >= wanted or math.isclose(totals[-1], wanted)
    return nearest if reachable else None

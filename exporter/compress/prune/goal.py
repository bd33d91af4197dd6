"""How far a goal reaches along the queue: by counting for shares, by measuring the exported file for budgets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from exporter.artifacts import ModelFigures
from exporter.compress.prune.cost import Cost, cost_of, parameters_of
from exporter.compress.prune.edit import apply_changes, restored
from exporter.compress.prune.plan import Queue, length_for_ratio, shortest
from exporter.errors import GateError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import PruneTable

_MEASUREMENTS = 8
"""How many exports a measured budget may take; for milliseconds noise drowns finer steps."""
_CLOSE = 0.99
"""A file this near below its budget is near enough."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a pruning stands: `module` as it is now, the cost and (for measured goals) figures it began with.

    `example` is one run's arguments; `channels_at_start` counts the channels of all groups that can go.
    """

    source: SourceModel
    module: nn.Module
    example: tuple[Tensor, ...]
    original: Cost
    channels_at_start: int
    channels_gone: int
    measure: Callable[[SourceModel], ModelFigures]
    figures: ModelFigures | None


def length_for_goal(queue: Queue, table: PruneTable, standing: Standing, *, share: float) -> int:
    """Return how many units must go for `share` (0..1) of `table`'s goal.

    Shares of MACs and parameters are reached by the shortest prefix, a ratio by the nearest. Raises
    `UnsupportedError` (12) for a ratio that would empty layers, `GateError` (14) for a budget out of reach.
    """
    if table.ratio is not None:
        return _for_ratio(queue, table, standing, table.ratio * share)
    original = standing.original
    if table.remove_macs is not None:
        most = original.macs * (1 - table.remove_macs * share)
        return _for_budget(queue, functools.partial(_macs, queue, standing), most, original.macs, "MACs")
    if table.remove_parameters is not None:
        most, all_of_them = original.parameters * (1 - table.remove_parameters * share), original.parameters
        count = functools.partial(_parameters, queue, standing)
        return _for_budget(queue, count, most, all_of_them, "parameters")
    if table.size_mb is not None:
        return _for_size(queue, table.size_mb, standing, share)
    if table.latency_ms is not None:
        return _for_latency(queue, table.latency_ms, standing, share)
    raise TypeError("a history is replayed, not planned")


def _macs(queue: Queue, standing: Standing, length: int) -> int:
    with restored(standing.module):
        apply_changes(standing.module, queue.changes(length))
        return cost_of(standing.module, standing.example).macs


def _parameters(queue: Queue, standing: Standing, length: int) -> int:
    with restored(standing.module):
        apply_changes(standing.module, queue.changes(length))
        return parameters_of(standing.module)


def _measured(queue: Queue, standing: Standing, length: int) -> ModelFigures:
    with restored(standing.module):
        apply_changes(standing.module, queue.changes(length))
        return standing.measure(replace(standing.source, module=standing.module))


def _for_ratio(queue: Queue, table: PruneTable, standing: Standing, ratio: float) -> int:
    wanted = ratio if table.scope == "layer" else ratio * standing.channels_at_start - standing.channels_gone
    length = length_for_ratio(queue, wanted, table.scope)
    floor = (queue.channels(len(queue.units)) + standing.channels_gone) / standing.channels_at_start
    if length is None or (table.scope == "layer" and ratio > table.max_layer_ratio):
        names = ", ".join(group.name for group in queue.groups[:3])
        raise UnsupportedError(
            f"prune: ratio = {ratio:g} would leave no channels in layers such as {names}: with round_to = "
            f"{table.round_to} and max_layer_ratio = {table.max_layer_ratio:g} at most {floor:.2f} of them can go",
            fix=f"use a ratio up to {min(floor, table.max_layer_ratio):.2f}, or change round_to or max_layer_ratio",
        )
    return length


def _for_budget(queue: Queue, count: Callable[[int], int], most: float, original: int, unit: str) -> int:
    found = shortest(len(queue.units), lambda length: count(length) <= most)
    if found is None:
        best = count(len(queue.units))
        raise GateError(
            f"prune: at most {1 - best / original:.1%} of the {unit} can go "
            f"({best:,} stay of {original:,}), and the goal is {1 - most / original:.1%}",
            fix="raise max_layer_ratio, lower round_to, shorten skip, or ask for less",
            details={unit: best, "removed": 1 - best / original, "wanted": 1 - most / original},
        )
    return found


def _for_size(queue: Queue, size_mb: float, standing: Standing, share: float) -> int:
    """Find a short prefix whose exported file holds: parameters say where to look, the file decides."""
    if standing.figures is None:
        raise TypeError("measured before")
    start = standing.figures.size_bytes
    most = start - (start - size_mb * 1e6) * share
    if most >= start:
        return 0
    low, high = -1, len(queue.units)
    weight = _measured(queue, standing, high).size_bytes
    if weight > most:
        raise GateError(
            f"prune: the smallest file reached is {weight / 1e6:.3f} MB, and the goal is {most / 1e6:.3f} MB",
            fix="raise max_layer_ratio, lower round_to, add a factorize or quantize step, or ask for less",
            details={"size_mb": weight / 1e6, "wanted_mb": most / 1e6},
        )
    bytes_each = start / standing.original.parameters
    for _ in range(_MEASUREMENTS):
        if high - low <= 1 or most * _CLOSE < weight <= most:
            break
        guess = _prefix_within(queue, standing, int(most / bytes_each))
        middle = min(max(guess, low + 1), high - 1)
        weight = _measured(queue, standing, middle).size_bytes
        bytes_each = weight / _parameters(queue, standing, middle)
        low, high = (low, middle) if weight <= most else (middle, high)
    return high


def _prefix_within(queue: Queue, standing: Standing, parameters: int) -> int:
    everything = len(queue.units)
    found = shortest(everything, lambda length: _parameters(queue, standing, length) <= parameters)
    return everything if found is None else found


def _for_latency(queue: Queue, latency_ms: float, standing: Standing, share: float) -> int:
    """Bisect over the queue; every length that is answered was measured to hold."""
    if standing.figures is None:
        raise TypeError("measured before")
    start = _milliseconds(standing.figures)
    most = start - (start - latency_ms) * share
    if most >= start:
        return 0
    seen: dict[int, float] = {}

    def holds(length: int) -> bool:
        seen[length] = _milliseconds(_measured(queue, standing, length))
        return seen[length] <= most

    found = shortest(len(queue.units), holds, resolution=len(queue.units) // 2 ** (_MEASUREMENTS - 1))
    if found is None:
        best = seen[len(queue.units)]
        raise GateError(
            f"prune: the fastest model reached takes {best:.3f} ms on this host, and the goal is {most:.3f} ms",
            fix="raise max_layer_ratio, lower round_to, start from a smaller student, or ask for less",
            details={"latency_ms": best, "wanted_ms": most},
        )
    return found


def _milliseconds(figures: ModelFigures) -> float:
    if figures.p50_ms is None:
        raise UnsupportedError(
            "prune: latency_ms needs a latency, and this host measured none",
            fix="use remove_macs instead",
        )
    return figures.p50_ms

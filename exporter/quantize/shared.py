"""Activations that one range serves: what a Concat joins, and the operands of a residual addition.

Reads the graph, chooses no numbers. Names are those that need a range of their own: a value that moves another's
integers as they are stands for that other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from exporter.quantize.regions import Regions


def shared_groups(model: ir.Model, regions: Regions) -> tuple[tuple[str, ...], ...]:
    """Return the groups of activations that must have one range: inputs and output of every quantised Concat.

    Concats that have a value in common are one group. A part that only the Concat reads loses nothing by it: its integers
    would be rounded a second time onto the output's grid; LiteRT has no Concat between different grids at all.
    """
    joined = _Joined()
    for node in _quantized(model, regions, "Concat"):
        joined.add(_owners([*node.inputs, *node.outputs], regions))
    return joined.groups()


def residual_pairs(model: ir.Model, regions: Regions) -> tuple[tuple[str, ...], ...]:
    """Return the operands of every quantised Add, in graph order: they may share a range, where that costs little.

    Integer additions rescale each operand to a common step first; on one grid there is nothing to rescale.
    """
    pairs = (_owners(node.inputs, regions) for node in _quantized(model, regions, "Add"))
    return tuple(pair for pair in pairs if len(pair) > 1)


def _quantized(model: ir.Model, regions: Regions, op: str) -> Iterable[ir.Node]:
    return (node for node in model.graph if node.op_type == op and node.name in regions.quantized)


def _owners(values: Sequence[ir.Value | None], regions: Regions) -> tuple[str, ...]:
    """Return, each once, the names whose ranges the values among `values` that are on grids take."""
    grids = frozenset(regions.grids)
    owners: dict[str, None] = {}
    for value in values:
        name = value.name or "" if value is not None else ""
        if name in grids:
            while name in regions.same_grid:
                name = regions.same_grid[name]
            owners[name] = None
    return tuple(owners)


class _Joined:
    """Sets of names that grow together when they meet, in the order of their first names."""

    def __init__(self) -> None:
        self._groups: list[dict[str, None]] = []

    def add(self, names: Sequence[str]) -> None:
        touching = [group for group in self._groups if not group.keys().isdisjoint(names)]
        merged = {name: None for group in touching for name in group} | dict.fromkeys(names)
        place = self._groups.index(touching[0]) if touching else len(self._groups)
        self._groups = [group for group in self._groups if not any(group is other for other in touching)]
        self._groups.insert(place, merged)

    def groups(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(group) for group in self._groups if len(group) > 1)

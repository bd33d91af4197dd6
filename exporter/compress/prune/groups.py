"""The groups of channels that can go, and for every other layer the reason why it stays.

A group holds everything that one channel touches: the layers that produce it, those that normalise it, those
that consume it, and parameters added to it. It is proposed by `prune_graph` and proven by `prune_check`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch_pruning import ops

from exporter.compress.prune.attention import CountingAttribute, Role, counting_attributes
from exporter.compress.prune.check import Probe
from exporter.compress.prune.edit import Change, Removal, Rescale, Side, pruner_of
from exporter.compress.prune.graph import ChannelGraph, is_conv1d, reshaped_axes
from exporter.errors import EdgeError, RecipeError, UnsupportedError, first_line, said

AttentionMode = Literal["heads", "width", "keep"]
Indices = NDArray[np.int64]
_MIXES_TOKENS = ("BmmBackward", "ScaledDotProduct")
_OPAQUE = {
    ops.OPTYPE.LSTM: "an LSTM",
    ops.OPTYPE.MHA: "an nn.MultiheadAttention with bias_k or add_zero_attn",
}


class _CannotFollow(Exception):
    """Why a group of channels has to stay, and the layers that produce them, as far as they are known."""

    def __init__(self, reason: str, producers: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.producers = tuple(producers)


@dataclass(frozen=True, slots=True)
class Operation:
    """One side of a layer that a group touches: channel `channels[i]` there is the group's channel `roots[i]`."""

    target: str
    side: Side
    axis: int
    channels: Indices
    roots: Indices


@dataclass(frozen=True, slots=True)
class Heads:
    """`count` heads of `width` channels each."""

    count: int
    width: int


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels 0 … `size` - 1 of the layer `name`, and everything that goes with them.

    `atoms` are the least sets of channels that can go. `attributes` count heads or channels in the user's
    modules. `rescale` names the layer that keeps attention logits as they were when heads become narrower
    (its factor is of one removal; `change` gives the right one).
    """

    name: str
    size: int
    operations: tuple[Operation, ...]
    atoms: tuple[tuple[int, ...], ...]
    heads: Heads | None = None
    attributes: tuple[CountingAttribute, ...] = ()
    rescale: tuple[str, int, int] | None = None

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers that compute these channels."""
        return tuple(item.target for item in self.operations if item.side == "outputs")

    @property
    def whole_heads(self) -> bool:
        """Whether an atom is a head, and not one dimension of every head."""
        return self.heads is not None and self.atoms[0] == tuple(range(self.heads.width))

    def change(self, removed: Iterable[int]) -> Change:
        """Return what leaves which layer when the channels `removed` of this group go."""
        gone = np.zeros(self.size, dtype=bool)
        gone[list(removed)] = True
        removals = []
        for item in self.operations:
            channels = tuple(sorted(int(channel) for channel in item.channels[gone[item.roots]]))
            if channels:
                removals.append(Removal(item.target, item.side, item.axis, channels))
        kept = self.size - int(gone.sum())
        rescale = None
        if self.rescale is not None and self.heads is not None:
            rescale = Rescale(*self.rescale, factor=float(np.sqrt(kept / self.size)))
        return Change(tuple(removals), tuple(self._counts(kept)), rescale)

    def _counts(self, kept: int) -> Iterator[tuple[str, str, int]]:
        for attribute in self.attributes:
            value = kept
            if self.heads is not None and attribute.role == "heads":
                value = kept // self.heads.width if self.whole_heads else self.heads.count
            elif self.heads is not None and attribute.role == "head_width":
                value = self.heads.width if self.whole_heads else kept // self.heads.count
            yield attribute.owner, attribute.name, value


@dataclass(frozen=True, slots=True)
class Groups:
    """What can be pruned, and layer → reason for what cannot."""

    prunable: tuple[ChannelGroup, ...]
    skipped: dict[str, str]


def find_groups(
    module: nn.Module,
    arguments: tuple[torch.Tensor, ...],
    probe: Probe,
    *,
    skip: Sequence[str],
    attention: AttentionMode,
    round_to: int,
) -> Groups:
    """Return the groups of `module`, each proven by `probe` to leave the other channels' values as they are.

    `module` is left as it was. Raises `RecipeError` for a `skip` pattern that matches no module.
    """
    kept_by_recipe = _matched(module, skip)
    graph = _traced(module, arguments)
    prunable: list[ChannelGroup] = []
    skipped: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not is_root(layer) or name in skipped or any(name in group.producers for group in prunable):
            continue
        if layer not in graph.module2node:
            skipped[name] = "no gradient of the outputs reaches it on the example inputs"
            continue
        touched = [name]
        try:
            group, touched = _group_of(graph, name, layer)
            if kept := [producer for producer in touched if producer in kept_by_recipe]:
                raise _CannotFollow("the recipe's skip" + ("" if name in kept else f" keeps {kept[0]}"))
            prunable.append(_proven(_with_atoms(group, module, attention, round_to), module, probe))
        except _CannotFollow as reason:
            skipped.update({producer: str(reason) for producer in reason.producers or touched})
    return Groups(tuple(prunable), skipped)


def _traced(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> ChannelGraph:
    try:
        return ChannelGraph(module, arguments)
    except (EdgeError, MemoryError):
        raise
    except Exception as error:  # forward is the user's code, and torch-pruning walks whatever it built
        raise UnsupportedError(
            f"prune cannot follow the model's channels: {said(error)}",
            fix="make forward run on the recipe's inputs without torch.no_grad, or use factorize or sparsify",
        ) from error


def is_root(layer: nn.Module) -> bool:
    """Whether `layer` makes channels that can be pruned: convolutions, linear layers, embeddings."""
    return isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)) or is_conv1d(layer)


def _matched(module: nn.Module, skip: Sequence[str]) -> set[str]:
    names = [name for name, _ in module.named_modules() if name]
    matched: set[str] = set()
    for pattern in skip:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise RecipeError(
                f"prune: skip pattern {pattern!r} matches no module",
                fix=f"use names such as {', '.join(near)}, or a glob like blocks.*",
            )
        matched |= {name for name in names if any(name == hit or name.startswith(f"{hit}.") for hit in hits)}
    return matched


# --- from torch-pruning's groups to ours -------------------------------------------------------------------


def _group_of(graph: ChannelGraph, name: str, layer: nn.Module) -> tuple[ChannelGroup, list[str]]:
    """Return the group of `layer`'s outputs and the names of all layers that produce its channels."""
    pruner = graph.get_pruner_of_module(layer)
    items = _items(graph, layer, pruner.prune_out_channels, range(pruner.get_out_channels(layer)))
    smallest = min(
        (item for item in items if is_root(item.dep.target.module) and item.idxs),
        key=lambda item: len(item.idxs),
    )
    if len(smallest.idxs) < pruner.get_out_channels(layer):
        # Fused projections and flattened maps: one of the narrow side's channels is several of the wide side's.
        root = smallest.dep.target.module
        items = _items(graph, root, smallest.dep.handler, sorted(smallest.idxs))
    names = {module: title for title, module in graph.model.named_modules()}
    producers = [
        names[item.dep.target.module]
        for item in items
        if is_root(item.dep.target.module) and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]
    if name not in producers:
        producers.append(name)
    if (reason := _reason_to_keep(items)) is not None:
        raise _CannotFollow(reason, producers)
    offset = min(items[0].idxs)
    operations = tuple(_operations(graph, names, items, offset))
    size = len(items[0].idxs)
    return ChannelGroup(name, size, operations, (), _heads(graph, items, size)), producers


def _items(graph: ChannelGraph, layer: nn.Module, side: Any, channels: Sequence[int]) -> list[Any]:
    try:
        return list(graph.get_pruning_group(layer, side, list(channels)).items)
    except (AttributeError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise _CannotFollow(f"torch-pruning loses its channels: {first_line(error)}") from error


def _reason_to_keep(items: list[Any]) -> str | None:
    for item in items:
        kind = item.dep.target.type
        if kind == ops.OPTYPE.OUTPUT:
            return "its channels are the model's outputs"
        if kind in _OPAQUE:
            return f"its channels meet {_OPAQUE[kind]}, whose widths are not pruned"
        if any(root is None for root in item.root_idxs):
            return "its channels are repeated between heads (grouped-query attention)"
    return None


def _operations(
    graph: ChannelGraph, names: dict[nn.Module, str], items: list[Any], offset: int
) -> Iterator[Operation]:
    for item in items:
        node = item.dep.target
        channels, roots = (
            np.array(item.idxs, dtype=np.int64),
            np.array(item.root_idxs, dtype=np.int64) - offset,
        )
        if node.type == ops.OPTYPE.PARAMETER:
            yield Operation(graph._param_to_name[node.module], "parameter", node.pruning_dim, channels, roots)
        elif node.module in names and pruner_of(node.module) is not None:
            is_output = graph.is_out_channel_pruning_fn(item.dep.handler)
            side: Side = "outputs" if is_output else "inputs"
            yield Operation(names[node.module], side, 0 if is_output else 1, channels, roots)


def _heads(graph: ChannelGraph, items: list[Any], size: int) -> Heads | None:
    """Return how a group that meets attention's matrix products is cut into heads; `None` if it does not."""
    nodes = [item.dep.target for item in items]
    kinds = [
        str(getattr(node.module, "_grad_fn", "")) for node in nodes if node.type == ops.OPTYPE.ELEMENTWISE
    ]
    if not any(mark in kind for kind in kinds for mark in _MIXES_TOKENS):
        return None
    for node in nodes:
        source = (
            graph.layouts.get(node.inputs[0]) if node.type == ops.OPTYPE.RESHAPE and node.inputs else None
        )
        if source is None or len(source.axes) != 1:
            continue
        shape = tuple(int(length) for length in node.grad_fn._input_metadata[0].shape)
        lengths = [shape[axis] for axis in reshaped_axes(source, shape)]
        if len(lengths) == 3 and lengths[1] * lengths[2] == size:
            lengths = lengths[1:]  # query, key and value lie beside each other in one projection
        if len(lengths) == 2 and lengths[0] * lengths[1] == size:
            return Heads(*lengths)
    return None


# --- atoms, attributes and proof ---------------------------------------------------------------------------


def _with_atoms(
    group: ChannelGroup, module: nn.Module, attention: AttentionMode, round_to: int
) -> ChannelGroup:
    if group.size <= round_to:
        raise _CannotFollow(f"it has {group.size} channels, not more than round_to = {round_to}")
    if group.heads is not None:
        if attention == "keep":
            raise _CannotFollow('attention = "keep"')
        table = np.arange(group.size).reshape(group.heads.count, group.heads.width)
        rows = table if attention == "heads" else table.T
        if len(rows) < 2:
            raise _CannotFollow(
                f"it has {len(rows)} heads" if attention == "heads" else "its heads have one channel"
            )
    else:
        rows = np.arange(group.size).reshape(_blocks(group, module), -1).T
        if len(rows) < 2:
            raise _CannotFollow("its groups have one channel each")
    return replace(group, atoms=tuple(tuple(int(channel) for channel in row) for row in rows))


def _blocks(group: ChannelGroup, module: nn.Module) -> int:
    """Return into how many equal blocks grouped layers cut the channels; each must lose the same."""
    blocks = 1
    for item in group.operations:
        if item.side == "parameter":
            continue
        layer = module.get_submodule(item.target)
        grouped = isinstance(layer, nn.modules.conv._ConvNd) and ops.module2type(layer) == ops.OPTYPE.CONV
        parts = layer.groups if grouped else layer.num_groups if isinstance(layer, nn.GroupNorm) else 1
        if not isinstance(parts, int) or parts == 1:
            continue
        if len(item.channels) != group.size or max(parts, blocks) % min(parts, blocks) or group.size % parts:
            raise _CannotFollow(
                f"{item.target} cuts them into {parts} groups that do not fit its other layers"
            )
        blocks = max(blocks, parts)
    return blocks


def _proven(group: ChannelGroup, module: nn.Module, probe: Probe) -> ChannelGroup:
    """Return `group` with the attributes and the rescaling under which removing channels changes nothing else."""
    count = len(group.atoms)
    gone = [index for index in range(count) if index % 3 == 0][: count - 1]
    removed = [channel for index in gone for channel in group.atoms[index]]
    failure: str | None = None
    for candidate in _candidates(group, module):
        failure = probe.mismatch([candidate.change(removed)])
        if failure is None:
            return candidate
    raise _CannotFollow(f"removing its channels breaks the model: {failure}")


def _candidates(group: ChannelGroup, module: nn.Module) -> Iterator[ChannelGroup]:
    sizes: dict[Role, int] = {"width": group.size}
    if group.heads is not None:
        sizes |= {"heads": group.heads.count, "head_width": group.heads.width}
    found = counting_attributes(module, group.producers, sizes)
    of_heads = tuple(attribute for attribute in found if attribute.role != "width")
    choices = [found, of_heads, ()] if group.heads is not None else [(), found]
    for attributes in dict.fromkeys(choices):
        candidate = replace(group, attributes=attributes)
        yield candidate
        if group.heads is not None and not group.whole_heads:
            # Logits are divided by the root of a head's width: wherever that follows the new width, undo it.
            for item in group.operations:
                if item.side == "outputs" and len(item.channels) % group.size == 0:
                    parts = len(item.channels) // group.size
                    for part in range(parts):
                        yield replace(candidate, rescale=(item.target, part, parts))

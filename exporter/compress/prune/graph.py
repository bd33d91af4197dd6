"""Which channels move together: torch-pruning's dependency graph, told where channels really are.

torch-pruning 1.6 reads the autograd graph and takes every tensor's channels to lie on axis 1 (of four) or on the
last axis. Concatenation, splitting, slicing and flattening along other axes then map channels wrongly. Here
the channel axis is followed from layer to layer through permutations and reshapes, and the saved dimensions
are presented to torch-pruning in the form it expects. What is still wrong is found by `prune_check`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch_pruning import ops
from torch_pruning.dependency.node import Node

from exporter.model.source import flatten_outputs

_CHANNEL_AXIS_1 = (
    ops.OPTYPE.CONV, ops.OPTYPE.DEPTHWISE_CONV, ops.OPTYPE.BN, ops.OPTYPE.GN, ops.OPTYPE.IN, ops.OPTYPE.PRELU,
)  # fmt: skip
_CHANNEL_AXIS_LAST = (
    ops.OPTYPE.LINEAR,
    ops.OPTYPE.LN,
    ops.OPTYPE.EMBED,
    ops.OPTYPE.CUSTOMIZED,
    ops.OPTYPE.MHA,
)
_RESHAPES = ("view", "reshape", "squeeze", "alias", "flatten")


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of a tensor and the axes that hold its channels: one, or several after heads were split off."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]


class Conv1dLikePruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Prunes `Conv1D` of transformers: a linear layer whose weight `[in, out]` is stored transposed."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Remove outputs `idxs`."""
        kept = [index for index in range(self.get_out_channels(layer)) if index not in set(idxs)]
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        layer.nf = len(kept)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Remove inputs `idxs`."""
        kept = [index for index in range(self.get_in_channels(layer)) if index not in set(idxs)]
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        layer.nx = len(kept)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        """Return how many outputs there are."""
        return int(layer.weight.shape[1])

    def get_in_channels(self, layer: Any) -> int:
        """Return how many inputs there are."""
        return int(layer.weight.shape[0])


CONV1D = Conv1dLikePruner()


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is a `Conv1D` of transformers (told by name: that package may not be installed)."""
    return (
        type(module).__name__ == "Conv1D"
        and hasattr(module, "nf")
        and isinstance(module.weight, nn.Parameter)
    )


class ChannelGraph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """A dependency graph of `model` traced on `arguments`; the model's outputs are nodes of their own.

    Needs autograd: parameters that do not require gradients are switched on while the graph is traced.
    """

    def __init__(self, model: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.layouts: dict[Node, Layout | None] = {}
        conv1d = {type(module): CONV1D for module in model.modules() if is_conv1d(module)}
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                self.build_dependency(
                    model, arguments, forward_fn=_outputs_apart, customized_pruners=conv1d, verbose=False
                )
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def _build_dependency(self, module2node: dict[Any, Node]) -> None:
        """Set the channel axes before torch-pruning maps indices by them."""
        for node in _in_order(module2node):
            self.layouts[node] = self._layout(node)
        for node in module2node.values():
            if node.type == ops.OPTYPE.OUTPUT:
                node.module.shape = None  # its axis 1 is not always the channels
            source = self._source_layout(node)
            if source is not None and node.grad_fn is not None:
                self._present(node, source)
        super()._build_dependency(module2node)

    def _present(self, node: Node, source: Layout) -> None:
        """Give torch-pruning the dimensions of `node` in its own convention."""
        saved = node.grad_fn
        rank = len(source.shape)
        match node.type:
            case ops.OPTYPE.CONCAT | ops.OPTYPE.SPLIT:
                on_channels = source.axes == (_signed(saved._saved_dim, rank),)
                node.enable_index_mapping = on_channels
                node.grad_fn = _Presented(saved, _saved_dim=1 if on_channels else 0)
            case ops.OPTYPE.UNBIND:
                outermost = source.axes[0] == _signed(saved._saved_dim, rank)
                node.grad_fn = _Presented(saved, _saved_dim=0 if outermost else 1)
            case ops.OPTYPE.SLICE:
                on_channels = source.axes == (_signed(node.module.dim, rank),)
                dim = 1 if on_channels else 0
                node.grad_fn = _Presented(saved, _saved_dim=dim, _saved_self_sym_sizes=(0,) * 4)
            case ops.OPTYPE.RESHAPE:
                strided = _is_strided(source, _shape_of(node))
                node.grad_fn = _Presented(saved, _saved_self_sizes=(0,) if strided else (0, 0, 0))
            case _:
                pass

    def _source_layout(self, node: Node) -> Layout | None:
        """Return the layout of what `node` reads, as far as its channels can be followed."""
        known = [self.layouts.get(source) for source in node.inputs]
        rank = len(_shape_of(node))
        for layout in known:
            if layout is not None and (node.type != ops.OPTYPE.CONCAT or len(layout.shape) == rank):
                return layout
        return None

    def _layout(self, node: Node) -> Layout | None:
        shape = _shape_of(node)
        rank = len(shape)
        if node.type in _CHANNEL_AXIS_1:
            return Layout(shape, (min(1, rank - 1),))
        if node.type in _CHANNEL_AXIS_LAST:
            return Layout(shape, (rank - 1,))
        if node.type == ops.OPTYPE.PARAMETER:
            return Layout(shape, (_signed(node.pruning_dim, rank),)) if rank else None
        source = self._source_layout(node)
        if source is None or node.grad_fn is None:
            return None
        return _after(node.grad_fn, source, shape)


class _Presented:
    """A node of autograd with some saved attributes said otherwise."""

    def __init__(self, saved: Any, **attributes: Any) -> None:
        self._saved = saved
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._saved, name)


def _outputs_apart(model: nn.Module, arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    # An operation after the last layer makes torch-pruning see an output there, not the layer itself.
    return [output * 1 for output in flatten_outputs(model(*arguments)) if output.requires_grad]


def _in_order(module2node: dict[Any, Node]) -> list[Node]:
    """Return all nodes, each after its inputs."""
    done: dict[Node, None] = {}
    for start in module2node.values():
        stack = [(start, False)]
        open_nodes: set[Node] = set()
        while stack:
            node, expanded = stack.pop()
            if expanded:
                done.setdefault(node)
            elif node not in done and node not in open_nodes:
                open_nodes.add(node)
                stack.append((node, True))
                stack.extend((source, False) for source in node.inputs)
    return list(done)


def _shape_of(node: Node) -> tuple[int, ...]:
    if isinstance(node.module, nn.Parameter):
        return tuple(node.module.shape)
    if node.grad_fn is None:
        return ()
    return tuple(int(size) for size in node.grad_fn._input_metadata[0].shape)


def _signed(dim: int, rank: int) -> int:
    """Return `dim` as a position: autograd saves negative ones as unsigned 64-bit numbers."""
    if dim >= 2**63:
        dim -= 2**64
    return dim + rank if dim < 0 else dim


def _after(saved: Any, source: Layout, shape: tuple[int, ...]) -> Layout | None:
    """Return where the channels of `source` lie after the operation `saved`, or `None` if they mix."""
    name, rank = saved.name().lower(), len(source.shape)
    if "permute" in name:
        order = [_signed(dim, rank) for dim in saved._saved_dims]
        return Layout(shape, tuple(position for position, axis in enumerate(order) if axis in source.axes))
    if "transpose" in name:
        pair = (_signed(saved._saved_dim0, rank), _signed(saved._saved_dim1, rank))
        swap = {pair[0]: pair[1], pair[1]: pair[0]}
        return Layout(shape, tuple(sorted(swap.get(axis, axis) for axis in source.axes)))
    if name.startswith(("bmm", "mm")):
        return None
    if any(part in name for part in _RESHAPES):
        axes = reshaped_axes(source, shape)
        return Layout(shape, axes) if axes else None
    if name.startswith(("select", "unbind")):
        gone = {_signed(saved._saved_dim, rank)}
    elif len(shape) < rank and hasattr(saved, "_saved_dim"):
        dims = saved._saved_dim
        gone = {_signed(dim, rank) for dim in (dims if isinstance(dims, tuple) else (dims,))}
    elif len(shape) < rank:
        return None
    else:
        grown = len(shape) - rank
        return Layout(shape, tuple(axis + grown for axis in source.axes))
    kept = [axis for axis in range(rank) if axis not in gone]
    axes = tuple(kept.index(axis) for axis in source.axes if axis in kept)
    return Layout(shape, axes) if axes else None


def reshaped_axes(source: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of `shape` that hold the channels of `source` after a reshape; empty if they mixed.

    Channels that were merged with axes after them count as held by the merged axis.
    """
    first, last = source.axes[0], source.axes[-1]
    if source.axes != tuple(range(first, last + 1)):
        return ()
    before, size = prod(source.shape[:first]), prod(source.shape[first : last + 1])
    starts = [
        position
        for position in range(len(shape))
        if prod(shape[:position]) == before and shape[position] != 1
    ]
    if not starts or size == 1:
        return ()
    axes, product = [], 1
    for position in range(starts[-1], len(shape)):
        axes.append(position)
        product *= shape[position]
        if product >= size:
            break
    return tuple(axes) if product % size == 0 else ()


def _is_strided(source: Layout, shape: tuple[int, ...]) -> bool:
    """Whether each channel becomes a block of features (flattening) or a block of features a channel."""
    axes = reshaped_axes(source, shape)
    size = prod(source.shape[axis] for axis in source.axes)
    flattened = bool(axes) and prod(shape[axis] for axis in axes) > size
    return flattened or (len(source.shape) == 2 and len(axes) > 1)

"""How much each channel matters: four estimates over groups of coupled channels.

Every estimate is a number per channel of a group, at least 0. Magnitude, batch-norm scale and activation are
divided by their mean over the group, since weights of different layers have no common unit; Taylor scores are
changes of one loss and compare as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_pruning import ops

from exporter.compress.prune.graph import is_conv1d
from exporter.compress.prune.groups import ChannelGroup, Operation
from exporter.errors import GateError, UnsupportedError
from exporter.model.source import flatten_outputs

if TYPE_CHECKING:
    from exporter.training.data import Batch

Scores = NDArray[np.float64]
Loss = Callable[[Any, Tensor | None], Tensor]
"""(The module's own result, labels or `None`) to a scalar."""


def magnitude(module: nn.Module, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """Return sqrt(what produces a channel · what reads it), both as mean squares of weights.

    A channel whose producers or whose readers have no weight carries nothing, whatever the other side holds;
    a mean over all coupled layers (Fang et al. 2023, arXiv:2301.12900) would keep it.
    """
    scores = []
    for group in groups:
        produced, read = np.zeros(group.size), np.zeros(group.size)
        for item in group.operations:
            energy = _energy(module, item)
            if energy is not None:
                side = read if item.side == "inputs" else produced
                side += _normal(_over_roots(energy, item, group.size))
        both = [side for side in (produced, read) if side.any()]
        scores.append(_normal(np.sqrt(np.prod(both, axis=0)) if both else np.zeros(group.size)))
    return scores


def bn_scale(module: nn.Module, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """Return the mean absolute scale of the batch normalisations on a channel (Liu et al. 2017, arXiv:1708.06519).

    Groups without one are scored by magnitude. Raises `UnsupportedError` (12) when no group has one.
    """
    scores, fallback, found = [], magnitude(module, groups), False
    for group, instead in zip(groups, fallback, strict=True):
        scales = [
            _over_roots(layer.weight.detach().abs(), item, group.size)
            for item in group.operations
            if item.side != "parameter"
            and isinstance(layer := module.get_submodule(item.target), _BatchNorm)
            and layer.affine
        ]
        found = found or bool(scales)
        scores.append(_normal(np.mean(scales, axis=0)) if scales else instead)
    if not found:
        raise UnsupportedError(
            'importance = "bn_scale" needs batch normalisation, and no layer that can be pruned has one',
            fix='use importance = "magnitude", "taylor" or "activation"',
        )
    return scores


def activation(
    module: nn.Module, groups: Sequence[ChannelGroup], samples: Iterator[tuple[Tensor, ...]]
) -> list[Scores]:
    """Return the mean absolute value that reaches the readers of each channel, over `samples` (forward's arguments).

    Several readers of one channel count equally.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    readers = {item.target for group in groups for item in group.operations if item.side == "inputs"}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else inputs[0].dim() - 1
        values = inputs[0].detach().abs().double().movedim(axis, 0).flatten(1)
        sums[name] = sums.get(name, 0) + values.sum(1)
        counts[name] = counts.get(name, 0) + values.shape[1]

    handles = [
        module.get_submodule(name).register_forward_pre_hook(functools.partial(note, name=name))
        for name in readers
    ]
    try:
        with torch.no_grad():
            for arguments in samples:
                module(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    scores = []
    for group in groups:
        total = np.zeros(group.size)
        for item in group.operations:
            if item.side == "inputs" and item.target in sums:
                total += _normal(_over_roots(sums[item.target] / counts[item.target], item, group.size))
        scores.append(_normal(total))
    return scores


def taylor(
    module: nn.Module, groups: Sequence[ChannelGroup], batches: Iterator[Batch], loss: Loss
) -> list[Scores]:
    """Return the root mean square, over `batches`, of the loss's first-order change when a channel is removed.

    That change is the derivative by a gate on the channel where it is read: the sum of weight · gradient over
    the weights that read it (Molchanov et al. 2019, arXiv:1906.10771). Raises `GateError` (14) when gradients
    are not finite.
    """
    squares = [np.zeros(group.size) for group in groups]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter.is_floating_point())
        for batch in batches:
            module.zero_grad(set_to_none=True)
            with torch.enable_grad():
                torch.autograd.backward(loss(module(*batch.inputs), batch.labels))
            for index, group in enumerate(groups):
                squares[index] += _gate_gradient(module, group) ** 2
    finally:
        module.zero_grad(set_to_none=True)
        for parameter, needed in flags:
            parameter.requires_grad_(needed)
    scores = [np.sqrt(total) for total in squares]
    for group, score in zip(groups, scores, strict=True):
        if not np.isfinite(score).all():
            raise GateError(
                f"prune: the gradients at {group.name} are not finite",
                fix='check the training data for outliers, or use importance = "magnitude"',
            )
    return scores


def power_of_outputs(result: Any, labels: Tensor | None) -> Tensor:  # noqa: ARG001
    """Return half the mean square of the outputs: a loss where there are no labels.

    Imitation of the model by itself would have no gradient.
    """
    powers = [
        output.float().pow(2).mean() / 2 for output in flatten_outputs(result) if output.is_floating_point()
    ]
    return torch.stack(powers).sum()


# --- weights, channel by channel ---------------------------------------------------------------------------


def _gate_gradient(module: nn.Module, group: ChannelGroup) -> Scores:
    total = np.zeros(group.size)
    for item in group.operations:
        if item.side == "inputs":
            layer = module.get_submodule(item.target)
            weight = layer.get_parameter("weight")
            if weight.grad is not None:
                product = (weight.detach() * weight.grad).double()
                total += _over_roots(_by_input(layer, product).sum(1), item, group.size)
    return total


def _energy(module: nn.Module, item: Operation) -> Tensor | None:
    """Return the sum of squared weights of each channel of one side of a layer; `None` where there are none."""
    if item.side == "parameter":
        return None
    layer = module.get_submodule(item.target)
    weight = getattr(layer, "weight", None)
    if weight is None or isinstance(layer, (nn.GroupNorm, nn.LayerNorm, nn.PReLU)):
        return None
    square = weight.detach().double().pow(2)
    if item.side == "inputs":
        return _by_input(layer, square).sum(1)
    return _by_output(layer, square).sum(1)


def _by_output(layer: nn.Module, values: Tensor) -> Tensor:
    transposed = is_conv1d(layer) or isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)
    return (values.transpose(0, 1) if transposed else values).reshape(
        values.shape[1 if transposed else 0], -1
    )


def _by_input(layer: nn.Module, values: Tensor) -> Tensor:
    """Return `values`, shaped as the layer's weight, as `[inputs, everything else]`."""
    if values.dim() == 1 or is_conv1d(layer) or getattr(layer, "transposed", False):
        return values.reshape(values.shape[0], -1)
    groups = getattr(layer, "groups", 1)
    if not isinstance(groups, int) or groups == 1 or ops.module2type(layer) == ops.OPTYPE.DEPTHWISE_CONV:
        return values.transpose(0, 1).reshape(values.shape[1], -1)
    blocks = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    return blocks.transpose(1, 2).reshape(groups * values.shape[1], -1)


def _over_roots(values: Tensor, item: Operation, size: int) -> Scores:
    """Return `values` of a layer's channels summed onto the group's channels."""
    chosen = values.double().cpu().numpy()[item.channels]
    return np.bincount(item.roots, weights=chosen, minlength=size).astype(np.float64)


def _normal(values: Scores) -> Scores:
    mean = values.mean() if values.size else 0.0
    return values / mean if mean > 0 else values


def scores_of_atoms(groups: Sequence[ChannelGroup], scores: Sequence[Scores]) -> list[Scores]:
    """Return for each group the mean score of each of its atoms."""
    return [
        np.array([score[list(atom)].mean() for atom in group.atoms])
        for group, score in zip(groups, scores, strict=True)
    ]

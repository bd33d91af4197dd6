"""A layer as two thinner ones: which layers that is possible for, and how the pair is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from exporter.compress.weight_layers import WeightLayer, choose_layers
from exporter.errors import UnsupportedError

_CONVOLUTIONS: tuple[type[nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def factorable_layers(
    module: nn.Module, skip: Sequence[str]
) -> tuple[tuple[WeightLayer, ...], dict[str, str]]:
    """Return the layers of `module` that a pair can stand in for, and why each other one stays whole.

    Raises `RecipeError` for a skip pattern that names nothing.
    """
    choice = choose_layers(module, skip)
    layers: list[WeightLayer] = []
    skipped = dict(choice.skipped)
    for layer in choice.layers:
        reason = _obstacle(module, layer)
        if reason is None:
            layers.append(layer)
        else:
            skipped[layer.name or "(the model)"] = reason
    return tuple(layers), skipped


def _obstacle(module: nn.Module, layer: WeightLayer) -> str | None:
    inner = layer.module
    if not layer.name:
        return "it is the whole model"
    if layer.parameter != "weight":
        return "query, key and value of nn.MultiheadAttention are one parameter, not layers"
    parent, _, _ = layer.name.rpartition(".")
    while True:
        holder = module.get_submodule(parent)
        if isinstance(holder, _READS_WEIGHTS):
            return f"nn.{type(holder).__name__} reads its weight without calling it"
        if not parent:
            break
        parent, _, _ = parent.rpartition(".")
    if isinstance(inner, nn.Linear):
        return None if type(inner).forward is nn.Linear.forward else _own_forward(inner)
    kind = next((kind for kind in _CONVOLUTIONS if isinstance(inner, kind)), None)
    if kind is None:
        return "a transposed convolution is not split"
    if type(inner).forward is not kind.forward:
        return _own_forward(inner)
    groups = inner.groups
    return None if groups == 1 else f"its {groups} groups see inputs of their own"


def _own_forward(module: nn.Module) -> str:
    return f"{type(module).__name__} has a forward of its own"


def matrix_of(layer: WeightLayer) -> Tensor:
    """Return the weight as `[out, in · kernel]` float64 on the CPU."""
    return layer.weight.detach().to("cpu", torch.float64).flatten(1)


def replace_by_pairs(module: nn.Module, ranks: Mapping[str, int]) -> dict[str, nn.Sequential]:
    """Put an unset pair of the given rank in the place of each named layer of `module`; return the pairs.

    A layer that the model knows by several names is replaced under all of them. The second of a pair has its
    layer's bias already. Raises `UnsupportedError` for a name that is no layer a pair can stand in for.
    """
    pairs: dict[str, nn.Sequential] = {}
    for name, rank in ranks.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError as error:
            raise UnsupportedError(
                f"the stored factorisation names layer {name}, and the model has none",
                fix="replay it on the model it was made from",
            ) from error
        pair = _unset_pair(name, layer, rank)
        for alias, other in list(module.named_modules(remove_duplicate=False)):
            if other is layer:
                module.set_submodule(alias, pair)
        pairs[name] = pair
    return pairs


def _unset_pair(name: str, layer: nn.Module, rank: int) -> nn.Sequential:
    """Return the layer's two halves without values, but with its bias."""
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(layer.in_features, rank, bias=False, device="meta")
        second: nn.Module = nn.Linear(rank, layer.out_features, bias=has_bias, device="meta")
    elif isinstance(layer, _CONVOLUTIONS):
        kind = next(kind for kind in _CONVOLUTIONS if isinstance(layer, kind))
        first = kind(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            padding_mode=layer.padding_mode,
            bias=False,
            device="meta",
        )
        second = kind(rank, layer.out_channels, 1, bias=has_bias, device="meta")
    else:
        raise UnsupportedError(
            f"the stored factorisation names {name}, which is a {type(layer).__name__} here",
            fix="replay it on the model it was made from",
        )
    pair = nn.Sequential(first, second).to(layer.weight.dtype).to_empty(device=layer.weight.device)
    if has_bias:
        with torch.no_grad():
            second.get_parameter("bias").copy_(layer.get_parameter("bias"))
    return pair.train(layer.training)


def set_factors(pair: nn.Sequential, left: Tensor, right: Tensor) -> None:
    """Write `left` `[out, rank]` and `right` `[rank, in · kernel]` into `pair`, whose product they are."""
    first, second = pair[0].get_parameter("weight"), pair[1].get_parameter("weight")
    with torch.no_grad():
        first.copy_(right.reshape(first.shape))
        second.copy_(left.reshape(second.shape))

"""Fold batch normalisation into the layer before it, in the torch module itself.

The exported graph has it folded anyway. Doing it before training makes the module's parameters and the file's
constants correspond one to one, so that what is trained is what is rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from exporter.model.capture import capture
from exporter.model.source import SourceModel

if TYPE_CHECKING:
    from torch.fx import Node

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def foldable_norms(source: SourceModel) -> list[tuple[str, str]]:
    """Return (layer, batch norm) module names, in the order they run, of norms that a layer can absorb.

    A norm counts if it reads nothing but the result of one convolution or linear layer, which nobody else
    reads, if each of the two modules runs exactly once, and if the layer's weight is a parameter of its own.
    Raises what `exporter.model.capture.capture` raises.
    """
    module = source.module
    if module is None:
        raise TypeError("this model came as ONNX and has no torch module")
    runs: Counter[str] = Counter()
    pairs = []
    for node in capture(source, dynamic=False).graph.nodes:
        if node.op != "call_function":
            continue
        runs[_module_of(node)] += _is_compute(node)
        layer = node.args[0] if _is_norm(node) else None
        if isinstance(layer, torch.fx.Node) and _is_layer(layer) and len(layer.users) == 1:
            pairs.append((_module_of(layer), _module_of(node)))
    return [
        (layer, norm) for layer, norm in pairs if runs[layer] == runs[norm] == 1 and _fit(module, layer, norm)
    ]


def fold_norms(module: nn.Module, pairs: Iterable[Sequence[str]]) -> None:
    """Give each layer of `pairs` the weight and bias that include its norm, which becomes an Identity.

    Changes `module`, which must be in eval mode; `pairs` as `foldable_norms` found them.
    """
    for layer_name, norm_name in pairs:
        layer: Any = module.get_submodule(layer_name)
        norm: Any = module.get_submodule(norm_name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        with torch.no_grad():
            if isinstance(layer, nn.Linear):
                weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
            else:
                turned = layer.__class__.__name__.startswith("ConvTranspose")
                weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, transpose=turned)
        trained = layer.weight.requires_grad
        layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=trained)
        layer.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=trained)
        parent, _, name = norm_name.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Identity())


def _module_of(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _operator(node: Node) -> str:
    return str(getattr(node.target, "_opname", ""))


def _is_norm(node: Node) -> bool:
    return node.op == "call_function" and "batch_norm" in _operator(node)


def _is_layer(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if _operator(node) == "linear":  # of higher rank, the norm is over another axis
        return bool(node.meta["val"].ndim == 2)
    return _operator(node).startswith("conv")


def _is_compute(node: Node) -> bool:
    return _is_norm(node) or _operator(node) == "linear" or _operator(node).startswith("conv")


def _fit(module: nn.Module, layer_name: str, norm_name: str) -> bool:
    """Whether both are plain modules, reachable by one name each, and the weight is not shared."""
    names = Counter(id(child) for _, child in module.named_modules(remove_duplicate=False))
    owners = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
    if not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) or type(norm) not in _NORMS or not norm_name:
        return False
    if norm.running_mean is None or names[id(layer)] != 1 or names[id(norm)] != 1:
        return False
    own = layer._parameters.get("weight")
    bias = layer._parameters.get("bias")
    return own is not None and owners[id(own)] == 1 and (bias is None or owners[id(bias)] == 1)

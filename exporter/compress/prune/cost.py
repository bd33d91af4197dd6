"""Multiply-accumulates and parameters of a torch module, counted as the exported graph counts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one inference on an example, and floating-point parameters, shared ones once."""

    macs: int
    parameters: int


def cost_of(module: nn.Module, arguments: tuple[Tensor, ...]) -> Cost:
    """Return what one run of `module` on `arguments` costs: convolutions and matrix products, biases not counted.

    Agrees with `exporter.model.graph.node_macs` of the exported file, where attention is written out as products.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator, counted as nothing
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            module(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return Cost(int(counter.get_total_flops()) // 2, parameters_of(module))


def parameters_of(module: nn.Module) -> int:
    """Return how many numbers the floating-point parameters of `module` hold, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.is_floating_point())

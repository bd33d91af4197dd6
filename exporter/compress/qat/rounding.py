"""Rounding as the exported integer graph does it, with gradients that see through it.

Every function computes, to the bit, the float that a DequantizeLinear (or a block kernel's unpacking) gives
back, and passes gradients straight through the rounding (Bengio et al. 2013, "Estimating or propagating
gradients through stochastic neurons"). Scales of activations are learned as in Esser et al. 2020, "Learned step
size quantization". The arithmetic that these modules imitate is in `exporter.quantize.integers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import GateError
from exporter.quantize.integers.grid import SMALLEST_SCALE, Grid
from exporter.quantize.integers.weights import (
    LARGEST_BIAS,
    LARGEST_SCALE,
    dequantize_blocks,
    kernel_block,
    quantize_blocks,
)

WEIGHT_LIMIT = 127
"""Weights are symmetric: −127 … 127."""
_PACE = 10.0
"""An adaptive optimiser moves every parameter by about its learning rate a step, and weights are of the order of
a tenth: ten times as fast, the logarithm of a scale changes by the same share a step as they do."""


class _OnGrid(torch.autograd.Function):
    """QuantizeLinear and DequantizeLinear. Gradients pass where the value was inside the grid's range."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, zero_point: int, lowest: int, highest: int
    ) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.bounds = (lowest - zero_point, highest - zero_point)
        steps = torch.round(values / scale)
        return steps.clamp_(*ctx.bounds).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        values, scale = ctx.saved_tensors
        low, high = ctx.bounds
        exact = values / scale
        steps = torch.round(exact)
        inside = (steps >= low) & (steps <= high)
        # d/d scale: rounding error inside the range, the end of the range outside (Esser et al., equation 3).
        slope = steps.clamp_(low, high) - torch.where(inside, exact, torch.zeros_like(exact))
        normaliser = 1.0 / float(np.sqrt(max(1, values.numel()) * (high - low)))
        return gradient * inside, (gradient * slope).sum() * normaliser, None, None, None


class ActivationGrid(nn.Module):
    """One activation's 256-level grid; its scale may be learned, its zero point stays.

    What is learned is the logarithm of scale / initial scale (over `_PACE`): one learning rate then fits scales of all sizes
    (Jain et al. 2020, "Trained quantization thresholds"), and weight decay pulls towards calibration.
    """

    def __init__(self, grid: Grid, *, learned: bool) -> None:
        super().__init__()
        info = np.iinfo(grid.dtype)
        self.dtype = grid.dtype
        self.lowest, self.highest, self.zero_point = int(info.min), int(info.max), grid.zero_point
        self.initial: Tensor
        self.register_buffer("initial", torch.tensor(float(grid.scale), dtype=torch.float32))
        self.log_ratio = nn.Parameter(torch.zeros(()), requires_grad=learned)

    @property
    def scale(self) -> Tensor:
        """The scale as it is now, float32 `[]`."""
        return (self.initial * torch.exp(_PACE * self.log_ratio)).clamp(min=SMALLEST_SCALE)

    def forward(self, values: Tensor) -> Tensor:
        """Return `values`, rounded to the grid."""
        # Under mixed precision half a byte of mantissa would be lost before rounding.
        exact = values.float()
        rounded: Tensor = _OnGrid.apply(exact, self.scale, self.zero_point, self.lowest, self.highest)  # type: ignore[no-untyped-call]
        return rounded

    @property
    def grid(self) -> Grid:
        """The grid as the exporter writes it."""
        return Grid(np.float32(self.scale.detach().cpu().item()), self.zero_point, self.dtype)


class _Straight(torch.autograd.Function):
    """Whatever float the integer storage gives back; the gradient passes unchanged."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor, store: Callable[[Tensor], Tensor]) -> Tensor:
        return store(values)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _straight(values: Tensor, store: Callable[[Tensor], Tensor]) -> Tensor:
    stored: Tensor = _Straight.apply(values, store)  # type: ignore[no-untyped-call]
    return stored


def channel_scales(weight: Tensor, axis: int) -> Tensor:
    """Return the float32 scale of each index of `axis`, as `quantize_per_channel` chooses it."""
    _require_finite(weight)
    rows = weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1)
    largest = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(len(rows))
    return (largest / WEIGHT_LIMIT).clamp(min=SMALLEST_SCALE)


def round_weight(weight: Tensor, scales: Tensor, axis: int) -> Tensor:
    """Return `weight` as int8 in ±127 at `scales` along `axis`, dequantised."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    spread = scales.reshape(shape)
    limits = (-WEIGHT_LIMIT, WEIGHT_LIMIT)
    return _straight(weight, lambda values: torch.round(values / spread).clamp_(*limits).mul_(spread))


def round_bias(bias: Tensor, scales: Tensor) -> Tensor:
    """Return `bias` as int32 at `scales`, dequantised; both `[channels]`."""
    wide = scales.detach().double()

    def store(values: Tensor) -> Tensor:
        integers = torch.round(values.double() / wide).clamp_(-(2**31), 2**31 - 1)
        return integers.to(torch.int32).float() * scales.detach()

    return _straight(bias, store)


class ChannelRows(nn.Module):
    """Weights stored as int8 with a scale per index of `axis`, and nothing else to heed."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` as it is stored, dequantised; same shape."""
        return round_weight(weight, channel_scales(weight, self.axis), self.axis)


@dataclass(frozen=True, slots=True)
class Reader:
    """An operator that multiplies by a shared weight: the grid of its activation, and whether it has a bias."""

    grid: ActivationGrid
    biased: bool


class ChannelWeight(nn.Module):
    """One weight of a static scheme and the biases of the operators that multiply by it.

    The weight is int8 per index of `axis`, coarser where a reader's bias would not fit int32 otherwise; a bias
    is int32 at input scale · weight scale. As in the exporter, a reader that needs no coarser weight than its
    own range takes the one that the reader before it got.
    """

    def __init__(self, axis: int, readers: Sequence[Reader]) -> None:
        super().__init__()
        self.axis = axis
        # Kept out of the module tree: the grids belong to the activations.
        self._readers = tuple(readers)

    def forward(self, weight: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
        """Return for each reader its weight and, if it has one, its bias `[channels]`, dequantised."""
        own = channel_scales(weight, self.axis)
        given = iter(biases)
        results: list[Tensor] = []
        scales: Tensor | None = None
        for reader in self._readers:
            bias = next(given).reshape(-1).expand(len(own)) if reader.biased else None
            needed = None if bias is None else _scales_for_bias(bias, reader.grid.scale)
            coarser = needed is not None and bool((needed > own).any())
            if scales is None or coarser:
                scales = own if needed is None else torch.maximum(own, needed)
            results.append(round_weight(weight, scales, self.axis))
            if bias is not None:
                results.append(round_bias(bias, scales * reader.grid.scale.detach()))
        return tuple(results)


def _scales_for_bias(bias: Tensor, input_scale: Tensor) -> Tensor:
    coarsest = bias.detach().abs().double() / (input_scale.detach().double() * LARGEST_BIAS)
    return coarsest.clamp(max=LARGEST_SCALE).float()


class BlockRows(nn.Module):
    """A matrix `[rows, columns]` stored in blocks along its columns, by the exporter's own search for scales.

    The search runs in numpy on the CPU; its answer is kept while the weight does not change, as it does not
    from batch to batch of a validation.
    """

    def __init__(self, block_size: int, bits: int) -> None:
        super().__init__()
        self.block_size, self.bits = block_size, bits
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` as it is stored, dequantised; same shape."""
        _require_finite(weight)
        return _straight(weight, self._store)

    def _store(self, weight: Tensor) -> Tensor:
        if self._seen is None or not torch.equal(self._seen[0], weight):
            rows = weight.detach().cpu().numpy()
            block = kernel_block(rows.shape[1], self.block_size)
            blocks = quantize_blocks(rows, block, self.bits, symmetric=self.bits == 8)
            restored = torch.from_numpy(dequantize_blocks(blocks)).to(weight.device)
            self._seen = (weight.detach().clone(), restored)
        return self._seen[1].clone()


class BlockActivations(nn.Module):
    """Activations as `MatMulNBits` at accuracy level 4 reads them: int8 in blocks along the reduction axis.

    Each block of each row gets the scale largest magnitude / 127, found anew at every inference. onnxruntime
    documents the width, not the rule; this one was measured (the kernels of x86-64, onnxruntime 1.32).
    """

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` `[…, depth]`, rounded; the gradient passes unchanged."""
        return _straight(values.float(), self._round)

    def _round(self, values: Tensor) -> Tensor:
        depth = values.shape[-1]
        count = -(-depth // self.block_size)
        padded = nn.functional.pad(values, (0, count * self.block_size - depth))
        blocks = padded.reshape(*values.shape[:-1], count, self.block_size)
        largest = blocks.abs().amax(dim=-1, keepdim=True)
        steps = torch.where(largest > 0, WEIGHT_LIMIT / largest, torch.zeros_like(largest))
        rounded = torch.round(blocks * steps) * (largest / WEIGHT_LIMIT)
        return rounded.reshape(padded.shape)[..., :depth]


def _require_finite(weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise GateError(
            f"a weight of shape {list(weight.shape)} became NaN or infinite during quantisation-aware training",
            fix="lower training.learning_rate of the qat step, or set training.clip_norm",
        )

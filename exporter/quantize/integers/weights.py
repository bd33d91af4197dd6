"""Numpy primitives that store float weights as integers, per channel or per block, and bring them back.

Knows arrays only: no graph, no file. Every function is a pure function of its arguments.
Affine quantisation is real = scale · (integer − zero point), as in the ONNX DequantizeLinear specification;
packed blocks have the layout of onnxruntime's `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import GateError, UsageError
from exporter.quantize.integers.grid import SMALLEST_SCALE

LARGEST_BIAS = 2.0**30
"""Largest |bias| in units of its scale: half of int32, leaving room for the accumulated products."""
LARGEST_SCALE = 2.0**100
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Fractions of a block's full range that are tried: clipping a few outliers lets the many be finer."""
_ELEMENTS_AT_ONCE = 1 << 20
_KERNEL_BLOCKS = (256, 128, 64, 32, 16)
_TOLERATED_PADDING = 1.03

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix `[rows, columns]` quantised in blocks along its columns.

    `packed` uint8 `[rows, blocks, block_size · bits / 8]`, low nibble first for 4 bits, columns padded with
    exact zeros to whole blocks; `scales` float32 `[rows, blocks]`, each exact in bfloat16, so that two bytes
    hold it; `zero_points` uint8 `[rows, ceil(blocks · bits / 8)]`, packed alike, or `None` where every zero
    point is 2^(bits−1).
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    bits: int
    columns: int

    @property
    def block_size(self) -> int:
        """Number of neighbouring weights that share one scale."""
        return int(self.packed.shape[2]) * 8 // self.bits


def quantize_per_channel(
    weight: Floats, axis: int, bits: int = 8
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return `weight` as symmetric int8 in ±(2^(bits−1) − 1) and one float32 scale per index of `axis`.

    Zero point 0; the largest magnitude of a channel maps to the end of the range (Krishnamoorthi 2018,
    "Quantizing deep convolutional networks for efficient inference", section 3.1). A channel of zeros gets
    the smallest scale. Raises `GateError` naming the index of a weight that is not finite.
    """
    require_finite(weight)
    limit = 2 ** (bits - 1) - 1
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    largest = np.maximum(weight.max(axis=others, initial=0), -weight.min(axis=others, initial=0))
    scales = np.maximum((largest / np.float32(limit)).astype(np.float32), SMALLEST_SCALE)
    steps = weight / along_axis(scales, axis, weight.ndim)
    np.rint(steps, out=steps)
    return np.clip(steps, -limit, limit, out=steps).astype(np.int8), scales


def scales_for_bias(bias: Floats, input_scale: float) -> NDArray[np.float32]:
    """Return the smallest weight scale of each channel at which its bias fits int32.

    The bias is stored at input scale · weight scale; a nearly dead channel with a real bias needs coarser
    weights than its own largest magnitude asks for.
    """
    coarsest = np.abs(bias).astype(np.float64) / (input_scale * LARGEST_BIAS)
    return np.minimum(coarsest, LARGEST_SCALE).astype(np.float32)


def round_per_channel(weight: Floats, scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """Return `weight` as int8 in ±127 at the given scales."""
    steps = np.rint(weight / along_axis(scales, axis, weight.ndim))
    integers: NDArray[np.int8] = np.clip(steps, -127, 127).astype(np.int8)
    return integers


def quantize_bias(bias: Floats, scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return `bias` as int32 in units of `scales` (input scale · weight scale of each channel)."""
    integers = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(integers, -(2**31), 2**31 - 1).astype(np.int32)


def dequantize_per_channel(
    integers: NDArray[np.int8], scales: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    """Return the float32 weights that `quantize_per_channel` stored."""
    weights: NDArray[np.float32] = integers.astype(np.float32) * along_axis(scales, axis, integers.ndim)
    return weights


def along_axis(values: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    """Return the vector `values` shaped to broadcast along `axis` of an array of `rank` dimensions."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def quantize_blocks(weight: Floats, block_size: int, bits: int = 4, *, symmetric: bool = False) -> Blocks:
    """Return the matrix `weight` `[rows, columns]` quantised in blocks of `block_size` columns.

    Scale (and zero point) of each block are those of the least squared error among clipped ranges (as in
    Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment"),
    then refitted by least squares to the integers chosen. `symmetric` fixes the zero point at 2^(bits−1) and
    signs the scale so that the block's largest weight takes the longer, negative end of the range; the other
    form spends `bits` more per block and at 4 bits loses 0.2 to 1.5 dB less, the heavier the tails the more.

    Raises `UsageError` for a block size onnxruntime has no kernel for, `GateError` for weights not finite.
    """
    if block_size not in {16, 32, 64, 128, 256} or bits not in {4, 8}:
        raise UsageError(
            f"no kernel for {bits}-bit weights in blocks of {block_size}",
            fix="use 4 or 8 bits in blocks of 16, 32, 64, 128 or 256",
        )
    require_finite(weight)
    rows, columns = weight.shape
    count = -(-columns // block_size)
    integers = np.empty((rows, count, block_size), np.uint8)
    scales = np.empty((rows, count), np.float32)
    zero_points = np.empty((rows, count), np.uint8)
    stride = max(1, _ELEMENTS_AT_ONCE // max(1, count * block_size))
    for start in range(0, rows, stride):
        part = slice(start, start + stride)
        blocks = _in_blocks(weight[part], count, block_size)
        fit = _fit_symmetric(blocks, bits) if symmetric else _fit_affine(blocks, bits)
        integers[part], scales[part], zero_points[part] = fit
    return Blocks(
        packed=pack(integers, bits),
        scales=scales,
        zero_points=None if symmetric else pack(zero_points, bits),
        bits=bits,
        columns=columns,
    )


def kernel_block(depth: int, largest: int = 256) -> int:
    """Return the largest block of MatMulNBits that pads `depth` by 3 % at most, else the one padding least.

    `largest` is the scheme's: blocks of 128 over rows of 64 would store as many zeros as weights.
    """
    padded = {block: -(-depth // block) * block for block in _KERNEL_BLOCKS if block <= largest}
    tight = [block for block, size in padded.items() if size <= _TOLERATED_PADDING * depth]
    return tight[0] if tight else min(padded, key=lambda block: (padded[block], -block))


def dequantize_blocks(blocks: Blocks) -> NDArray[np.float32]:
    """Return the float32 matrix `[rows, columns]` that `quantize_blocks` stored."""
    count = blocks.scales.shape[1]
    integers = unpack(blocks.packed, blocks.bits, blocks.block_size).astype(np.float32)
    if blocks.zero_points is None:
        centred = integers - np.float32(2 ** (blocks.bits - 1))
    else:
        centred = integers - unpack(blocks.zero_points, blocks.bits, count)[..., None]
    values: NDArray[np.float32] = (centred * blocks.scales[..., None]).reshape(len(integers), -1)
    return values[:, : blocks.columns]


def pack(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return unsigned integers packed along the last axis: two of 4 bits to a byte, the first in the low half."""
    if bits == 8:
        return integers
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros_like(integers[..., :1])], axis=-1)
    packed: NDArray[np.uint8] = integers[..., 0::2] | (integers[..., 1::2] << np.uint8(4))
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the `count` unsigned integers along the last axis that `pack` stored."""
    if bits == 8:
        return packed
    halves = np.stack([packed & 0x0F, packed >> np.uint8(4)], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)[..., :count]


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 `values` rounded to the nearest bfloat16 (ties to even), still as float32."""
    pattern = values.view(np.uint32)
    rounded = (pattern + np.uint32(0x7FFF) + ((pattern >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def require_finite(weight: Floats) -> None:
    """Raise `GateError` naming the index of the first weight that is NaN or infinite."""
    finite = np.isfinite(weight)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise GateError(
            f"weight {weight[index]} at {index} of a tensor of shape {weight.shape} is not finite",
            fix="repair the weights: training diverged or the file is damaged",
        )


def _in_blocks(rows: Floats, count: int, block_size: int) -> NDArray[np.float32]:
    padded = np.zeros((len(rows), count * block_size), np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded.reshape(len(rows), count, block_size)


_Fit = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]


def _fit_affine(blocks: NDArray[np.float32], bits: int) -> _Fit:
    """Return integers, scales and zero points of least squared error; ranges always hold zero exactly."""
    levels = 2**bits - 1
    low = np.minimum(blocks.min(axis=2), 0.0)
    span = np.maximum(blocks.max(axis=2), 0.0) - low
    candidates = []
    for shrink in _SHRINKS:
        scale = _storable(span * np.float32(shrink / levels))
        zero_point = np.clip(np.rint(-low * np.float32(shrink) / scale), 0, levels)
        candidates.append((scale, zero_point))
    return _best(blocks, candidates, levels)


def _fit_symmetric(blocks: NDArray[np.float32], bits: int) -> _Fit:
    """Return integers, signed scales and the middle zero point; the largest weight lands on −2^(bits−1)."""
    half = 2 ** (bits - 1)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    middle = np.full(peak.shape, half, np.float32)
    candidates = [(_storable(peak * np.float32(-shrink / half)), middle) for shrink in _SHRINKS]
    return _best(blocks, candidates, 2**bits - 1)


def _storable(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    magnitude = round_to_bfloat16(np.maximum(np.abs(scales), SMALLEST_SCALE).astype(np.float32))
    return np.copysign(magnitude, scales).astype(np.float32)


def _best(
    blocks: NDArray[np.float32],
    candidates: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    levels: int,
) -> _Fit:
    scale, zero_point = candidates[0]
    _, least = _round(blocks, scale, zero_point, levels)
    for other_scale, other_zero in candidates[1:]:
        _, error = _round(blocks, other_scale, other_zero, levels)
        better = error < least
        scale = np.where(better, other_scale, scale)
        zero_point = np.where(better, other_zero, zero_point)
        least = np.minimum(error, least)
    scale = _refit(blocks, scale, zero_point, levels, least)
    integers, _ = _round(blocks, scale, zero_point, levels)
    return integers.astype(np.uint8), scale, zero_point.astype(np.uint8)


def _refit(
    blocks: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.float32],
    levels: int,
    least: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the scale that fits the chosen integers by least squares, where it truly lowers the error."""
    integers, _ = _round(blocks, scale, zero_point, levels)
    centred = integers - zero_point[..., None]
    power = np.einsum("rcb,rcb->rc", centred, centred)
    fitted = np.einsum("rcb,rcb->rc", centred, blocks) / np.maximum(power, 1.0)
    usable = np.abs(fitted) >= SMALLEST_SCALE
    fitted = np.where(usable, _storable(fitted.astype(np.float32)), scale)
    _, error = _round(blocks, fitted, zero_point, levels)
    return np.where(error < least, fitted, scale)


def _round(
    blocks: NDArray[np.float32], scale: NDArray[np.float32], zero_point: NDArray[np.float32], levels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the integers (as float32) nearest to `blocks` and the squared error of each block."""
    integers = blocks / scale[..., None]
    np.rint(integers, out=integers)
    integers += zero_point[..., None]
    np.clip(integers, 0, levels, out=integers)
    error = (integers - zero_point[..., None]) * scale[..., None] - blocks
    return integers, np.einsum("rcb,rcb->rc", error, error)

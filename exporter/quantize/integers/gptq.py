"""Rounding that knows what the weights multiply: each column makes good what the columns before it lost.

Minimises tr((W − Ŵ) H (W − Ŵ)ᵀ), the squared error of a layer's outputs over the inputs whose second moment is H,
instead of the error of each weight. Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", in the form of Chee et al. 2023, "QuIP", §4: with H = (U + I) D (U + I)ᵀ, U strictly upper,
column k rounds w_k + Σ_{j<k} (w_j − ŵ_j) U_jk. That is the same rounding, and needs one Cholesky factor and no inverse.

Knows arrays only. Deterministic: equal inputs give equal integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.arrays import Float32Array
from exporter.errors import UsageError
from exporter.quantize.integers.weights import Blocks, pack, quantize_blocks, round_per_channel, unpack

DAMPING = 0.01
"""Share of the mean diagonal that is added to H: it is singular when inputs are fewer than columns (GPTQ, §3.3)."""
_COLUMNS_AT_ONCE = 128
_ELEMENTS_AT_ONCE = 1 << 23
_MOST_DAMPING = 1e3


def round_channels(
    weight: Float32Array, hessian: NDArray[Any], scales: Float32Array, bits: int = 8
) -> NDArray[np.int8]:
    """Return the matrix `weight` `[N, K]` as symmetric integers in ±(2^(bits−1) − 1) at one scale per row.

    `hessian` `[K, K]` is Σ x xᵀ over the inputs x that the rows multiply. A row that plain rounding serves better
    takes that: the result is never worse than it.
    """
    limit = 2 ** (bits - 1) - 1
    rounder = _Rounder(hessian)
    integers = np.empty(weight.shape, np.int8)
    for part in _parts(weight):
        rows, scale = weight[part], scales[part][:, None]
        plain = np.clip(round_per_channel(rows, scales[part], 0), -limit, limit).astype(np.float32)
        chosen = rounder.round(rows, np.broadcast_to(scale, rows.shape), 0.0, -limit, limit)
        integers[part] = rounder.better(rows, chosen, plain, scale).astype(np.int8)
    return integers


def round_blocks(
    weight: Float32Array, hessian: NDArray[Any], block_size: int, bits: int = 4, *, symmetric: bool = False
) -> Blocks:
    """Return the matrix `weight` `[N, K]` in blocks along its columns, as `quantize_blocks` does, rounded to `hessian`.

    Scales and zero points are those of `quantize_blocks`, fixed beforehand, so that columns can be taken in the order
    of their importance ("static groups"); only the integers change. Never worse than plain rounding, row by row.
    """
    plain = quantize_blocks(weight, block_size, bits, symmetric=symmetric)
    rounder = _Rounder(hessian)
    packed = np.empty_like(plain.packed)
    count, width = plain.scales.shape[1], weight.shape[1]
    for part in _parts(weight):
        scale = np.repeat(plain.scales[part], block_size, axis=1)[:, :width]
        zero = _zero_points(plain, part, count)
        spread = np.repeat(zero, block_size, axis=1)[:, :width]
        nearest = unpack(plain.packed[part], bits, block_size).reshape(len(scale), -1)[:, :width]
        chosen = rounder.round(weight[part], scale, spread, 0, 2**bits - 1)
        settled = rounder.better(weight[part], chosen, nearest.astype(np.float32), scale, spread)
        # Padding is exact zeros, as in the plain form.
        padded = np.repeat(zero, block_size, axis=1)
        padded[:, :width] = settled
        packed[part] = pack(padded.astype(np.uint8).reshape(len(scale), count, block_size), bits)
    return Blocks(packed, plain.scales, plain.zero_points, bits, plain.columns)


def output_error(difference: NDArray[Any], hessian: NDArray[Any]) -> NDArray[np.float64]:
    """Return d H dᵀ for every row d of `difference` `[N, K]`: squared output error, summed over the inputs of H."""
    error: NDArray[np.float64] = np.einsum("nk,nk->n", difference @ hessian, difference, dtype=np.float64)
    return error


def _parts(weight: Float32Array) -> list[slice]:
    stride = max(1, _ELEMENTS_AT_ONCE // max(1, weight.shape[1]))
    return [slice(start, start + stride) for start in range(0, len(weight), stride)]


def _zero_points(blocks: Blocks, part: slice, count: int) -> Float32Array:
    rows = len(blocks.scales[part])
    if blocks.zero_points is None:
        return np.full((rows, count), 2 ** (blocks.bits - 1), np.float32)
    return unpack(blocks.zero_points[part], blocks.bits, count).astype(np.float32)


class _Rounder:
    """The feedback of one H, for any number of rows. Columns are taken by falling diagonal ("act-order")."""

    def __init__(self, hessian: NDArray[Any]) -> None:
        if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
            raise UsageError(f"a second moment of shape {hessian.shape} is not square", fix="pass Σ x xᵀ")
        self.hessian = np.asarray(hessian, np.float32)
        diagonal = np.diagonal(self.hessian)
        self.order = np.argsort(-diagonal, kind="stable")
        self.feedback = _feedback(self.hessian[np.ix_(self.order, self.order)])

    def round(
        self, rows: Float32Array, scale: Float32Array, zero: Float32Array | float, low: int, high: int
    ) -> Float32Array:
        """Return the integers (as float32) of `rows` at `scale` and `zero` (both broadcast to the rows)."""
        ordered = rows[:, self.order]
        steps = np.broadcast_to(scale, rows.shape)[:, self.order]
        offsets = np.broadcast_to(np.asarray(zero, np.float32), rows.shape)[:, self.order]
        integers = np.empty_like(ordered)
        error = np.zeros_like(ordered)
        width = rows.shape[1]
        for start in range(0, width, _COLUMNS_AT_ONCE):
            stop = min(start + _COLUMNS_AT_ONCE, width)
            wanted = ordered[:, start:stop] + error[:, :start] @ self.feedback[:start, start:stop]
            for column in range(start, stop):
                own = self.feedback[start:column, column]
                aim = wanted[:, column - start] + error[:, start:column] @ own
                step, offset = steps[:, column], offsets[:, column]
                integers[:, column] = np.clip(np.rint(aim / step) + offset, low, high)
                error[:, column] = ordered[:, column] - (integers[:, column] - offset) * step
        back = np.empty_like(integers)
        back[:, self.order] = integers
        return back

    def better(
        self,
        rows: Float32Array,
        chosen: Float32Array,
        plain: Float32Array,
        scale: Float32Array,
        zero: Float32Array | float = 0.0,
    ) -> Float32Array:
        """Return `chosen`, and of the rows for which `plain` loses less, `plain`."""
        wins = output_error(rows - (chosen - zero) * scale, self.hessian) < output_error(
            rows - (plain - zero) * scale, self.hessian
        )
        return np.where(wins[:, None], chosen, plain)


def _feedback(hessian: Float32Array) -> Float32Array:
    """Return U `[K, K]`, strictly upper triangular, of H + damping = (U + I) D (U + I)ᵀ."""
    width = len(hessian)
    mean = float(np.diagonal(hessian).mean(dtype=np.float64))
    if not np.isfinite(mean) or mean <= 0.0:
        return np.zeros((width, width), np.float32)  # inputs that are always zero: nothing to make good
    damping = DAMPING
    while damping < _MOST_DAMPING:
        damped = hessian + np.float32(damping * mean) * np.eye(width, dtype=np.float32)
        try:
            # Flipped, factored and flipped back, a lower factor becomes an upper one: H = R Rᵀ.
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            damping *= 10.0
            continue
        unit = upper / np.diagonal(upper)
        np.fill_diagonal(unit, 0.0)
        return np.ascontiguousarray(unit, np.float32)
    return np.zeros((width, width), np.float32)

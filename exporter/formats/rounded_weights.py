"""int4 weights chosen before a converter sees them, in a form from which it can only find the same integers.

LiteRT's and Core ML's quantisers round each weight to the nearest of 15 levels at scale max|w| / 7. Here weights are
put on such a grid first: q · s with |q| ≤ 7, at least one |q| = 7 in every block, and s exact in 8 bits of mantissa,
so that q · s is exact in float16 too. The converter's own scale is then s and its integers are q, whichever converter.
What this buys: scales of least squared error instead of the largest weight, and rounding that knows the calibration
data (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers").

Runs in child processes. Knows arrays and the float ONNX graph, and neither converter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.arrays import Float32Array

LIMIT = 7
"""The largest |integer|: both converters leave −8 unused in their symmetric form."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_DAMPING = 0.01
_COLUMNS_AT_ONCE = 128
_FLOAT16 = 2.0**-11
_SMALLEST_FLOAT16 = np.float32(2.0**-14)
"""The smallest normal float16: below it 8 bits of mantissa are no longer exact."""


@dataclass(frozen=True, slots=True)
class ConverterWeight:
    """One constant of a converted float model as rows `[N, K]`, a row per output channel.

    `name` identifies it to the caller; `block` counts the columns that share a scale (a divisor of K).
    """

    name: str
    rows: Float32Array
    block: int


def on_grid(rows: Float32Array, block: int, hessian: NDArray[Any] | None = None) -> Float32Array:
    """Return `rows` `[N, K]` on a symmetric int4 grid with a scale per `block` columns, as float32.

    `hessian` `[K, K]` is the second moment Σ x xᵀ of the inputs that the rows multiply: rounding then minimises the
    error of the layer's outputs; without it, of the weights. A row for which the former is worse by its own measure
    takes the latter. Blocks too small for a normal float16 scale are returned as they are.
    """
    importance = np.ones(rows.shape[1], np.float32) if hessian is None else _importance(hessian)
    scales = np.repeat(_scales(rows, block, importance), block, axis=1)
    usable = scales >= _SMALLEST_FLOAT16
    scales = np.maximum(scales, _SMALLEST_FLOAT16)
    nearest = np.clip(np.rint(rows / scales), -LIMIT, LIMIT) * scales
    chosen = nearest
    if hessian is not None:
        compensated = _compensated(rows, hessian, scales, block)
        better = _output_error(rows, compensated, hessian) < _output_error(rows, nearest, hessian)
        chosen = np.where(better[:, None], compensated, nearest)
    settled: Float32Array = np.where(usable, chosen, rows).astype(np.float32)
    return settled


def _importance(hessian: NDArray[Any]) -> NDArray[Any]:
    diagonal = np.diagonal(hessian).astype(np.float64)
    mean = diagonal.mean()
    return diagonal / mean + _DAMPING if mean > 0 else np.ones_like(diagonal)


def _scales(rows: Float32Array, block: int, importance: NDArray[Any]) -> Float32Array:
    """Return the scale `[N, K / block]` of least weighted squared error among clipped ranges, exact in bfloat16."""
    blocks = rows.reshape(len(rows), -1, block)
    weights = importance.reshape(1, -1, block)
    largest = np.abs(blocks).max(axis=2)
    best = _storable(largest / LIMIT)
    least = _clipped_error(blocks, best, weights)
    for shrink in _SHRINKS[1:]:
        scale = _storable(largest * np.float32(shrink) / LIMIT)
        error = _clipped_error(blocks, scale, weights)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _storable(scales: NDArray[Any]) -> Float32Array:
    """Return `scales` rounded to bfloat16's 8 bits of mantissa, nearest and ties to even, as float32."""
    pattern = np.ascontiguousarray(scales, np.float32).view(np.uint32)
    rounded = (pattern + np.uint32(0x7FFF) + ((pattern >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _clipped_error(blocks: Float32Array, scale: Float32Array, weights: NDArray[Any]) -> NDArray[Any]:
    steps = np.maximum(scale, _SMALLEST_FLOAT16)[..., None]
    error = np.clip(np.rint(blocks / steps), -LIMIT, LIMIT) * steps - blocks
    return np.asarray((np.square(error) * weights).sum(axis=2))


def _output_error(rows: Float32Array, chosen: Float32Array, hessian: NDArray[Any]) -> NDArray[Any]:
    difference = (rows - chosen).astype(np.float64)
    return np.asarray(((difference @ hessian) * difference).sum(axis=1))


def _compensated(rows: Float32Array, hessian: NDArray[Any], scales: Float32Array, block: int) -> Float32Array:
    """Return `rows` rounded column after column, what each loses made good by the columns that follow it.

    The largest weight of each block stays at ±7: from it the converter takes the scale.
    """
    factor = _inverse_factor(hessian)
    work = rows.astype(np.float64)
    chosen = np.empty_like(work)
    signs = _pins(rows, block)
    width = rows.shape[1]
    for start in range(0, width, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, width)
        errors = np.empty((len(rows), stop - start))
        for column in range(start, stop):
            integers = np.clip(np.rint(work[:, column] / scales[:, column]), -LIMIT, LIMIT)
            integers = np.where(signs[:, column] == 0, integers, LIMIT * signs[:, column])
            chosen[:, column] = integers * scales[:, column]
            error = (work[:, column] - chosen[:, column]) / factor[column, column]
            work[:, column + 1 : stop] -= np.outer(error, factor[column, column + 1 : stop])
            errors[:, column - start] = error
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return chosen.astype(np.float32)


def _pins(rows: Float32Array, block: int) -> NDArray[np.int8]:
    """Return the sign of the largest weight of every block where it stands, 0 elsewhere."""
    blocks = rows.reshape(len(rows), -1, block)
    places = np.abs(blocks).argmax(axis=2)[..., None]
    signs = np.zeros(blocks.shape, np.int8)
    np.put_along_axis(signs, places, np.sign(np.take_along_axis(blocks, places, axis=2)).astype(np.int8), 2)
    return signs.reshape(rows.shape)


def _inverse_factor(hessian: NDArray[Any]) -> NDArray[np.float64]:
    """Return upper triangular U with UᵀU the inverse of the damped `hessian`; inputs that are always 0 count as 1."""
    damped = hessian.astype(np.float64)
    diagonal = np.diagonal(damped).copy()
    dead = diagonal <= 0
    mean = float(diagonal.mean()) or 1.0
    damped[np.diag_indices_from(damped)] += np.where(dead, mean, _DAMPING * mean)
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    return np.ascontiguousarray(lower.T)


def same_rows(weight: Float32Array, candidates: Sequence[Float32Array]) -> int | None:
    """Return which of `candidates` holds the rows of `weight`, up to the rounding of float16; `None` if none does."""
    tolerance = _FLOAT16 * float(np.abs(weight).max(initial=0.0))
    for index, other in enumerate(candidates):
        if other.shape == weight.shape and float(np.abs(other - weight).max(initial=0.0)) <= tolerance:
            return index
    return None

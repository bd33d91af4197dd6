"""Per-channel weight scales of least squared error: clip a channel's few outliers so that its many weights are finer.

Knows arrays only. Nagel et al. 2021, "A White Paper on Neural Network Quantization", §3.1, with a bound that keeps
the search short.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exporter.quantize.integers.grid import SMALLEST_SCALE
from exporter.quantize.integers.weights import Floats, require_finite

_ELEMENTS_AT_ONCE = 1 << 16
"""Of float32: with its buffers that stays in a core's second-level cache over all candidates."""
_CANDIDATES = 12
_REFINEMENTS = 4
_LEAST_SHRINK = 0.1
_CLEARLY_BETTER = 1.0 - 1e-4
"""Errors are summed in float32: a smaller difference is rounding, and must not make a channel worse."""
_EXACT = np.float32(1e-9)
"""Squared steps: below it a row lies on its grid, to what float32 resolves near its largest integer."""

_Rows = NDArray[np.float32]


def mse_scales(weight: Floats, axis: int, bits: int = 8) -> NDArray[np.float32]:
    """Return one float32 scale per index of `axis` whose symmetric grid has the least squared error.

    The grid is that of `quantize_per_channel`: ±(2^(bits−1) − 1) steps, zero point 0. No channel's error is above that
    of scaling to its largest magnitude, and where nothing is gained that very scale is returned. Memory is that of
    one channel, or 2^16 elements. Raises `GateError` naming the index of a weight that is not finite.
    """
    require_finite(weight)
    limit = 2 ** (bits - 1) - 1
    channels = np.moveaxis(weight, axis, 0)
    channels = (
        channels.reshape(len(channels), -1) if weight.size else np.zeros((len(channels), 1), np.float32)
    )
    scales = np.empty(len(channels), np.float32)
    stride = max(1, _ELEMENTS_AT_ONCE // channels.shape[1])
    for start in range(0, len(channels), stride):
        part = slice(start, start + stride)
        scales[part] = _best_scales(np.array(channels[part], np.float32, order="C"), limit)
    return scales


def _best_scales(rows: _Rows, limit: int) -> NDArray[np.float32]:
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    full = np.maximum((largest / np.float32(limit)).astype(np.float32), SMALLEST_SCALE)
    steps = np.empty_like(rows)
    # In steps of the full scale: squares of 3e38 or of 1e-30 would leave float32.
    rows /= full[:, None]
    best, least = np.ones(len(rows), np.float32), _errors(rows, np.ones(len(rows), np.float32), limit, steps)
    # Clipping at a share r of the largest costs that weight alone ((1 − r)·limit)² steps², so no r below
    # 1 − √error / limit can be better than not clipping.
    lowest = np.clip(1.0 - np.sqrt(least) / limit, _LEAST_SHRINK, 1.0)
    width = (1.0 - lowest) / _CANDIDATES
    for index in range(1, _CANDIDATES + 1):
        best, least = _better(rows, 1.0 - index * width, best, least, limit, steps)
    centre = best
    for offset in np.linspace(-0.75, 0.75, _REFINEMENTS):
        best, least = _better(rows, np.minimum(centre + offset * width, 1.0), best, least, limit, steps)
    fitted = _refitted(rows, best, limit, steps)
    best, _ = _better(rows, fitted, best, least, limit, steps)
    scales: _Rows = np.where(best == 1.0, full, np.maximum(full * best, SMALLEST_SCALE)).astype(np.float32)
    return scales


def _better(
    rows: _Rows, shrink: Floats, best: _Rows, least: _Rows, limit: int, steps: _Rows
) -> tuple[_Rows, _Rows]:
    """Return the scales and errors of each row with `shrink` taken where it is clearly better."""
    candidate = shrink.astype(np.float32)
    error = _errors(rows, candidate, limit, steps)
    # At most what float32 loses on a weight that a grid hits exactly is not an error to improve on.
    better = (error < least * np.float32(_CLEARLY_BETTER)) & (least > _EXACT * rows.shape[1])
    return np.where(better, candidate, best), np.where(better, error, least)


def _errors(rows: _Rows, scales: _Rows, limit: int, steps: _Rows) -> _Rows:
    _round(rows, scales, limit, steps)
    np.multiply(steps, scales[:, None], out=steps)
    np.subtract(steps, rows, out=steps)
    errors: _Rows = np.einsum("ij,ij->i", steps, steps)
    return errors


def _round(rows: _Rows, scales: _Rows, limit: int, steps: _Rows) -> None:
    np.multiply(rows, (np.float32(1.0) / scales)[:, None], out=steps)
    np.rint(steps, out=steps)
    np.clip(steps, -limit, limit, out=steps)


def _refitted(rows: _Rows, scales: _Rows, limit: int, steps: _Rows) -> _Rows:
    """Return the scale that fits the integers chosen at `scales` by least squares; `scales` where all are 0."""
    _round(rows, scales, limit, steps)
    power = np.einsum("ij,ij->i", steps, steps)
    fitted = np.einsum("ij,ij->i", steps, rows) / np.maximum(power, np.float32(1.0))
    return np.where(fitted > 0, fitted, scales).astype(np.float32)

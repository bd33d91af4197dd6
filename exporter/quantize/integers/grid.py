"""Affine integer grids: real = scale · (integer − zero point), as the ONNX QuantizeLinear specification has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST_SCALE = 2.0**-100
"""Of activations and of weights: far above float32's subnormals (2^-126), so the product of two, a bias's, is normal."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of one activation tensor: `scale` float32, `zero_point` in `dtype` (int8 or uint8)."""

    scale: np.float32
    zero_point: int
    dtype: np.dtype[np.signedinteger] | np.dtype[np.unsignedinteger]

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest real number on the grid."""
        info = np.iinfo(self.dtype)
        return float(self.scale) * (info.min - self.zero_point), float(self.scale) * (
            info.max - self.zero_point
        )


def grid_of(low: float, high: float, *, unsigned: bool) -> Grid:
    """Return the 256-level grid that spans [low, high], widened so that zero is exactly on it.

    A range that is empty after that (a tensor that is always zero) gets scale 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    dtype: np.dtype[np.signedinteger] | np.dtype[np.unsignedinteger]
    dtype = np.dtype(np.uint8) if unsigned else np.dtype(np.int8)
    info = np.iinfo(dtype)
    if high == low:
        return Grid(np.float32(1.0), int(info.min), dtype)
    scale = np.float32(max((high - low) / 255.0, SMALLEST_SCALE))
    zero_point = int(np.clip(round(info.min - low / float(scale)), info.min, info.max))
    return Grid(scale, zero_point, dtype)

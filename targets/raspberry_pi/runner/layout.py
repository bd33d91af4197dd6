"""Where channels lie in a tensor, and what its dtype can hold."""

from __future__ import annotations

import numpy as np

from targets.raspberry_pi.runner.bundle import Json


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values`, whose last axis is the channel, with the channels where `layout` has them."""
    return np.moveaxis(values, -1, -3) if layout == "NCHW" else values


def saturated(values: np.ndarray, contract: Json) -> np.ndarray:
    """Return `values` as the contract's dtype can hold them, without the rounding of floats."""
    dtype: np.dtype = np.dtype(contract["dtype"])
    if dtype.kind not in "iu":
        return values
    limits = np.iinfo(dtype)
    held: np.ndarray = np.clip(np.rint(values), limits.min, limits.max)
    return held

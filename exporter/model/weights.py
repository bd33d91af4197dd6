"""Which numbers a weight can be: finite, and no larger than training makes them.

Pure numpy; knows neither torch nor ONNX.
"""

from __future__ import annotations

import numpy as np

from exporter.errors import GateError

LARGEST_SANE_WEIGHT = 1e15
"""A weight beyond this cannot come from training; int8 and float16 would both lose everything beside it."""
_MASK_FILL = -1e30
"""Attention masks are filled with −inf or the lowest float on purpose; those are constants, not weights."""


def require_sane_weight(name: str, array: np.ndarray, *, may_mask: bool) -> None:
    """Raise `GateError` (14) naming the first element of `array` that no format can carry, and its index.

    `may_mask` allows what fills attention masks: −inf, or anything at most −1e30.
    """
    if array.dtype == np.float16:  # whose largest number is far below the limit
        array = array.astype(np.float32)
    bad = ~(np.abs(array) <= LARGEST_SANE_WEIGHT)
    if may_mask:
        bad &= ~(array <= _MASK_FILL)
    if not bad.any():
        return
    index = [int(axis) for axis in np.argwhere(bad)[0]]
    raise GateError(
        f"weight {name}{index} is {array[tuple(index)]} ({int(bad.sum())} such in this tensor)",
        fix="train or save the model again: no format can carry this",
        details={"tensor": name, "index": index},
    )

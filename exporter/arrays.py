"""How signatures speak of numbers: the one spelling of an array, and of what a model takes or gives at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Of any shape and any dtype."""
Float32Array = NDArray[np.float32]
Sample = Mapping[str, Array]
"""An array for each input (or output) of a model, by its name."""

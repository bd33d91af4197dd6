"""What a model in either runtime can do."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Session(Protocol):
    """A model file that its runtime has loaded; `runtime` is that one's name and version."""

    runtime: str

    def run(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in signature order for inputs in signature order."""

    def signature(self) -> tuple[list[str], list[str]]:
        """Return the input and output names that the file itself uses."""

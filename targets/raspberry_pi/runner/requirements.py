"""What has to be installed before anything can be computed."""

from __future__ import annotations

import numpy as np

from targets.raspberry_pi.runner.errors import ModelError


def require_numpy() -> None:
    """Raise if numpy is missing: nothing here works without it."""
    if np is None:
        raise ModelError("E-unsupported", 12, "numpy is not installed", "python -m pip install numpy")

"""Libraries that not every user wants: they come with an extra of the distribution, and are asked for by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from exporter.errors import UnsupportedError


def require_installed(what: str, modules: Iterable[str], *, extra: str) -> None:
    """Raise `UnsupportedError` (12), naming what `what` lacks of `modules` and the `extra` that brings it."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f"{what} needs {', '.join(missing)}, which is not installed",
            fix=f"run: pip install 'edge-exporter[{extra}]'",
        )

"""Ways to bring back accuracy that quantisation took, each a pure step: (float graph, encodings) → the same.

One file a method, each switched on by its name; none knows what a budget is (that is `stages.recover`) and none
sees evaluation data. Imports nothing heavy until a method is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from exporter.errors import RecipeError

if TYPE_CHECKING:
    from exporter.recover.methods.base import Method

METHODS: dict[str, tuple[str, str]] = {
    "equalize": ("exporter.recover.methods.equalize", "equalize"),
    "smooth": ("exporter.recover.methods.smooth", "smooth"),
    "bias": ("exporter.recover.methods.bias_correction", "correct_bias"),
    "rounding": ("exporter.recover.methods.rounding", "round_weights"),
}
"""Module and function of each method, in the order of their cost."""


def method_of(name: str) -> Method:
    """Return the method called `name`; `RecipeError` offers the nearest names."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=2) or list(METHODS)
        raise RecipeError(f"no recovery method is called {name!r}", fix=f"use {', '.join(near)}")
    module, attribute = METHODS[name]
    method: Method = getattr(importlib.import_module(module), attribute)
    return method

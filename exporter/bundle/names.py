"""The one rule for names and versions: what a recipe, a registry and every package of it may be called.

They become file, Maven, Swift and Python names; nothing that a shell, a path or a URL would read otherwise gets through.
"""

from __future__ import annotations

NAME_RULE = r"[a-z0-9][a-z0-9._-]{0,99}"
"""Of a model; besides, without `..`."""

_IDENTIFIERS = r"[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*"
VERSION_RULE = rf"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-{_IDENTIFIERS})?(\+{_IDENTIFIERS})?"
"""SemVer; besides, at most 64 characters."""

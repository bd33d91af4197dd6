"""Texts that `java.util.Properties` reads: the one format of facts that Android and a desktop's Java both know.

Specification: `java.util.Properties.load(InputStream)`, Java SE 8.
"""

from __future__ import annotations

from collections.abc import Mapping

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", **{mark: f"\\{mark}" for mark in "\\=:#! "}}


def properties(facts: Mapping[str, str]) -> bytes:
    """Return `facts` as lines `key=value`, sorted by key, ASCII only; whatever a key or value holds is read back."""
    return "".join(f"{_escaped(key)}={_escaped(facts[key])}\n" for key in sorted(facts)).encode("ascii")


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(unit) or _plain(unit) for unit in _units(text))


def _units(text: str) -> str:
    """Return `text` as its UTF-16 code units, one character each, as Java counts them."""
    encoded = text.encode("utf-16-be", "surrogatepass")
    return "".join(chr(int.from_bytes(encoded[at : at + 2], "big")) for at in range(0, len(encoded), 2))


def _plain(unit: str) -> str:
    return unit if " " < unit < "\x7f" else f"\\u{ord(unit):04X}"

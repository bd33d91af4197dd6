"""Names and literals for generated source: identifiers that compile, strings that cannot break out.

Model, tensor and label names come from users; nothing of theirs reaches Kotlin or Swift unescaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Kotlin's hard keywords, Swift's, and the names that the templates themselves use.
_RESERVED = """
as break class continue do else false for fun if in interface is null object package return super this throw
true try typealias typeof val var when while
associatedtype case catch default defer deinit enum extension fallthrough fileprivate func guard import init
inout internal let nil operator precedencegroup private protocol public repeat rethrows self static struct
subscript switch throws where any some await async
feeds results session environment interpreter buffers model settings tensor numbers values bytes direct filled
answer it
"""
KEYWORDS = frozenset(_RESERVED.split())


def words(text: str) -> list[str]:
    """Return the runs of ASCII letters and digits in `text`."""
    return re.findall(r"[A-Za-z0-9]+", text)


def type_name(*parts: str) -> str:
    """Return an UpperCamelCase type name made of `parts`; "Model" goes before a leading digit."""
    joined = "".join(word[0].upper() + word[1:] for part in parts for word in words(part))
    return joined if joined[:1].isalpha() else f"Model{joined}"


def value_name(text: str) -> str:
    """Return a lowerCamelCase identifier for `text` that is no keyword and starts with a letter."""
    parts = words(text) or ["tensor"]
    name = parts[0][0].lower() + parts[0][1:] + "".join(part[0].upper() + part[1:] for part in parts[1:])
    if name[0].isdigit():
        name = f"tensor{name}"
    return f"{name}Value" if name in KEYWORDS else name


def value_names(texts: Iterable[str]) -> list[str]:
    """Return one identifier for each of `texts`, all different."""
    names: list[str] = []
    for text in texts:
        name = base = value_name(text)
        number = 2
        while name in names:
            name = f"{base}{number}"
            number += 1
        names.append(name)
    return names


def kotlin_string(text: str) -> str:
    """Return `text` as a Kotlin string literal; `$` would start an interpolation."""
    units = [int.from_bytes(pair, "big") for pair in _pairs(text.encode("utf-16-be", "surrogatepass"))]
    return f'"{"".join(_kotlin_character(unit) for unit in units)}"'


def _pairs(data: bytes) -> list[bytes]:
    return [data[start : start + 2] for start in range(0, len(data), 2)]


def _kotlin_character(unit: int) -> str:
    if chr(unit) in '"\\$':
        return f"\\{chr(unit)}"
    return chr(unit) if 32 <= unit < 127 else f"\\u{unit:04X}"


def swift_string(text: str) -> str:
    """Return `text` as a Swift string literal, ASCII only."""
    return f'"{"".join(_swift_character(character) for character in text)}"'


def _swift_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if 32 <= ord(character) < 127 else f"\\u{{{ord(character):X}}}"


def comment(text: str) -> str:
    """Return `text` on one line, unable to end or open a block comment."""
    return " ".join(text.split()).replace("*/", "* /").replace("/*", "/ *")


def cell(text: str) -> str:
    """Return `text` for a cell of a Markdown table, unable to end it."""
    return text.replace("|", "\\|")


def axis_names(shapes: Iterable[Sequence[int | str]]) -> list[str]:
    """Return the named axes of `shapes` in order of appearance, each once."""
    return list(dict.fromkeys(axis for shape in shapes for axis in shape if isinstance(axis, str)))

"""A recipe's text with some values changed: its comments, order and everything else as its author left them.

Values are changed where they stand, line by line, and the result is read back and compared with what was meant.
Where a text is too unusual for that, the recipe is written anew from its tables, and says so.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.search.space import get_at, set_at

_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_REFERENCE_KEYS = frozenset(
    {"factory", "teacher", "loss", "augment", "function", "metric", "measure", "callable"}
)
_PATH_KEYS = frozenset({"path", "weights", "history", "teacher_weights"})
LINE_WIDTH = 110


def rewritten(text: str, wanted: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, bool]:
    """Return `text` with `values` (by path of the key) set so that it reads as the tables `wanted`.

    The flag says whether the text was kept: `False` means that it was written anew, without its comments.
    """
    lines: list[str] | None = text.splitlines()
    for key, value in values.items():
        lines = None if lines is None else _with_value(lines, key.split("."), value)
    if lines is not None:
        kept = "\n".join(lines) + "\n"
        try:
            if tomllib.loads(kept) == wanted:
                return kept, True
        except tomllib.TOMLDecodeError:
            pass
    return toml_text(wanted), False


def moved_references(tables: Mapping[str, Any], old: Path, new: Path) -> dict[str, str]:
    """Return the keys, by path, whose relative paths must change when a recipe moves from folder `old` to `new`.

    Those are the paths and the `file.py:callable` references; modules (`package.module:callable`) stay as they are.
    """
    changed = {}
    for key, value in _leaves(tables):
        last = key.rpartition(".")[2]
        file, colon, attribute = value.partition(":")
        is_code = last in _REFERENCE_KEYS and bool(colon) and file.endswith(".py")
        if not is_code and last not in _PATH_KEYS:
            continue
        path = Path(file if is_code else value)
        if not path.is_absolute():
            there = Path(os.path.relpath(old / path, new)).as_posix()
            changed[key] = f"{there}:{attribute}" if is_code else there
    return changed


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the strings in nested tables with their paths."""
    if isinstance(value, str):
        yield path, value
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


# --- one value in its place ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key in a text: its path, and the lines [start, end) that it and its value take."""

    path: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Section:
    """A header in a text: its path, the lines [start, end) below it, and the keys in them."""

    path: tuple[str, ...]
    start: int
    end: int
    entries: tuple[_Entry, ...]


def _with_value(lines: list[str], key: Sequence[str], value: Any) -> list[str] | None:
    """Return `lines` with the key set, or `None` where it has no place that can be told from the text."""
    sections = _sections(lines)
    if sections is None:
        return None
    for section in sections:
        for entry in section.entries:
            if tuple(key[: len(entry.path)]) == entry.path:
                return _replaced(lines, entry, key, value)
    homes = [section for section in sections if tuple(key[: len(section.path)]) == section.path]
    home = max(homes, key=lambda section: len(section.path))
    rest = list(key[len(home.path) :])
    if not rest or any(part.isdigit() for part in rest):
        return None
    if not home.path and len(rest) > 1:
        header = f"[{'.'.join(map(_key_text, rest[:-1]))}]"
        return [*lines, "", header, f"{_key_text(rest[-1])} = {inline(value)}"]
    for part in reversed(rest[1:]):
        value = {part: value}
    at = max((entry.end for entry in home.entries), default=home.start)
    return [*lines[:at], f"{_key_text(rest[0])} = {inline(value)}", *lines[at:]]


def _sections(lines: Sequence[str]) -> list[_Section] | None:
    """Return the headers of a text with the keys below each, or `None` where a line is neither."""
    sections: list[_Section] = []
    counts: dict[tuple[str, ...], int] = {}
    path: tuple[str, ...] = ()
    entries: list[_Entry] = []
    start = number = 0
    while number < len(lines):
        line = lines[number].strip()
        header = _HEADER.fullmatch(line) if line.startswith("[") else None
        if header is not None:
            sections.append(_Section(path, start, number, tuple(entries)))
            name = _key_path(header[2])
            if name is None:
                return None
            path, start, entries = _numbered(name, header[1] == "[[", counts), number + 1, []
            number += 1
        elif not line or line.startswith("#"):
            number += 1
        else:
            entry = _entry_at(lines, number, path)
            if entry is None:
                return None
            entries.append(entry)
            number = entry.end
    return [*sections, _Section(path, start, len(lines), tuple(entries))]


def _numbered(name: tuple[str, ...], is_list: bool, counts: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """Return a header's path with the number of each list's element in it, and count the element."""
    path: tuple[str, ...] = ()
    for number, part in enumerate(name):
        path = (*path, part)
        if is_list and number == len(name) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, str(counts[path]))
    return path


def _entry_at(lines: Sequence[str], start: int, section: tuple[str, ...]) -> _Entry | None:
    """Return the key that begins in line `start`; its value ends where TOML can first be read."""
    for end in range(start + 1, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
        path = _key_path(lines[start].partition("=")[0])
        return None if path is None else _Entry((*section, *path), start, end)
    return None


def _key_path(text: str) -> tuple[str, ...] | None:
    """Return the parts of a dotted key, quotes undone."""
    try:
        value: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return None
    parts: list[str] = []
    while isinstance(value, dict):
        part, value = next(iter(value.items()))
        parts.append(part)
    return tuple(parts)


def _replaced(lines: list[str], entry: _Entry, key: Sequence[str], value: Any) -> list[str]:
    """Return `lines` with the entry's value replaced, or the value inside it that `key` leads to."""
    block = "\n".join(lines[entry.start : entry.end])
    inside = list(key[len(entry.path) :])
    if inside:
        holder = {"value": copy.deepcopy(_value_of(block))}
        set_at(holder, ".".join(["value", *inside]), value)
        value = holder["value"]
    name, _, _ = lines[entry.start].partition("=")
    comment = _comment_of(lines[entry.end - 1], block)
    line = f"{name.rstrip()}{_gap(lines[entry.start])}{inline(value)}{comment}"
    return [*lines[: entry.start], line, *lines[entry.end :]]


def _gap(line: str) -> str:
    """Return the `=` of a line with the spaces around it, which may align it with its neighbours."""
    found = re.search(r"\s*=\s*", line)
    return found[0] if found is not None else " = "


def _value_of(block: str) -> Any:
    value: Any = tomllib.loads(block)
    path = _key_path(block.partition("=")[0]) or ()
    for part in path:
        value = value[part]
    return value


def _comment_of(last_line: str, block: str) -> str:
    """Return the comment at the end of a key's last line, with the spaces before it; empty if there is none."""
    meant = tomllib.loads(block)
    for found in re.finditer(r"\s*#", last_line):
        without = block[: len(block) - len(last_line) + found.start()]
        try:
            if tomllib.loads(without) == meant:
                return last_line[found.start() :]
        except tomllib.TOMLDecodeError:
            continue
    return ""


# --- TOML from tables ------------------------------------------------------------------------------------


def toml_text(tables: Mapping[str, Any]) -> str:
    """Return `tables` as TOML: values first, then a section for each table and each element of a list of tables."""
    return "\n".join(_section_lines(tables, ())).strip() + "\n"


def _section_lines(tables: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    below = {key: value for key, value in tables.items() if _is_section(value, len(path))}
    for key, value in tables.items():
        if key not in below:
            yield f"{_key_text(key)} = {inline(value)}"
    for key, value in below.items():
        name = ".".join(map(_key_text, (*path, key)))
        for element in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _section_lines(element, (*path, key))


def _is_section(value: Any, depth: int) -> bool:
    """Whether a value gets a header of its own: tables near the top, and lists of tables."""
    if isinstance(value, Mapping):
        return depth == 0 or len(inline(value)) > LINE_WIDTH or not value
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key_text(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def inline(value: Any) -> str:
    """Return `value` as TOML on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return _string(value)
        case Mapping():
            inside = ", ".join(f"{_key_text(key)} = {inline(item)}" for key, item in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case list() | tuple():
            return f"[{', '.join(map(inline, value))}]"
        case datetime.date() | datetime.time():
            return value.isoformat()
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped and knows no surrogate pairs.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def value_in(tables: Mapping[str, Any], key: str) -> Any:
    """Return the value at the path `key`, or `None` if the tables do not say."""
    try:
        return get_at(tables, key)
    except (KeyError, IndexError, TypeError):
        return None

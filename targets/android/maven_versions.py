"""How Maven orders versions: what its clients take for the latest must be what a listing calls so.

After `ComparableVersion` of Maven 3.8 (org.apache.maven.artifact.versioning): numbers and words, split at dots, at hyphens
and between digits and letters; what follows a hyphen, or a change between digits and letters, is a list inside the list.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

_ORDERED = ("alpha", "beta", "milestone", "rc", "snapshot", "", "sp")
_ALIASES = {"ga": "", "final": "", "release": "", "cr": "rc"}
_SHORT = {"a": "alpha", "b": "beta", "m": "milestone"}


@dataclass(frozen=True, slots=True)
class _Word:
    """A qualifier, by its rank: the known ones in order, those unknown after them by their letters."""

    rank: str

    @classmethod
    def of(cls, text: str, *, before_digits: bool = False) -> _Word:
        if before_digits:
            text = _SHORT.get(text, text)
        text = _ALIASES.get(text, text)
        return cls(str(_ORDERED.index(text)) if text in _ORDERED else f"{len(_ORDERED)}-{text}")


@dataclass(slots=True)
class _List:
    """Numbers, words and lists, without what counts for nothing at the end."""

    items: list[int | _Word | _List] = field(default_factory=list)

    def opened(self) -> _List:
        """Return a new list at the end of this one."""
        self.items.append(inner := _List())
        return inner

    def trim(self) -> None:
        """Leave out zeros, releases and empty lists at the end and before words; inner lists first."""
        for item in self.items:
            if isinstance(item, _List):
                item.trim()
        for at in range(len(self.items) - 1, -1, -1):
            after = self.items[at + 1] if at + 1 < len(self.items) else _RELEASE
            first = after.items[0] if isinstance(after, _List) and after.items else after
            if self.items[at] in (0, _RELEASE, _List()) and isinstance(first, _Word):
                del self.items[at]


_RELEASE = _Word.of("")
_Item = int | _Word | _List | None


def oldest_first(versions: Iterable[str]) -> list[str]:
    """Return `versions` as Maven orders them; equal ones (`1.0` and `1.0.0`) by their text."""
    compare = functools.cmp_to_key(_compare)
    return sorted(versions, key=lambda text: (compare(_parsed(text)), text))


def _parsed(version: str) -> _List:
    root = current = _List()
    text, start, was_digit = version.lower(), 0, False
    for at, character in enumerate(text):
        if character in ".-":
            current.items.append(_item(text[start:at], is_number=was_digit) if at > start else 0)
            start = at + 1
            if character == "-":
                current = current.opened()
        elif (is_digit := character in "0123456789") != was_digit:
            if at > start and was_digit:
                current.items.append(int(text[start:at]))
            elif at > start:
                current = current.opened() if current.items else current
                current.items.append(_Word.of(text[start:at], before_digits=True))
            if at > start:
                start, current = at, current.opened()
            was_digit = is_digit
    if start < len(text):
        current = current.opened() if current.items and not was_digit else current
        current.items.append(_item(text[start:], is_number=was_digit))
    root.trim()
    return root


def _item(text: str, *, is_number: bool) -> int | _Word:
    return int(text) if is_number else _Word.of(text)


def _compare(one: _Item, other: _Item) -> int:
    """Return -1, 0 or 1; `None` stands for nothing more."""
    if one is None:
        return 0 if other is None else -_compare(other, None)
    if isinstance(one, _List):
        return _compare_list(one, other)
    if isinstance(one, int):
        against = 0 if other is None else other
        return _sign(is_more=one > against, is_less=one < against) if isinstance(against, int) else 1
    word = _RELEASE if other is None else other
    if not isinstance(word, _Word):
        return -1
    return _sign(is_more=one.rank > word.rank, is_less=one.rank < word.rank)


def _compare_list(one: _List, other: _Item) -> int:
    if isinstance(other, (int, _Word)):
        return -1 if isinstance(other, int) else 1
    others = other.items if other is not None else []
    for place in range(max(len(one.items), len(others))):
        left = one.items[place] if place < len(one.items) else None
        right = others[place] if place < len(others) else None
        if found := _compare(left, right):
            return found
    return 0


def _sign(*, is_more: bool, is_less: bool) -> int:
    return is_more - is_less

"""Text that is safe to show: one line, and nothing in it that a terminal would obey.

Names, paths and messages come from files, users and other machines. Standard library only.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

MAX_LINE_CHARACTERS = 4000
_LINE_BREAKS = re.compile(r"[ \t]*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+[ \t]*")


def inert(text: object) -> str:
    """Return `text` as one printable line.

    Line breaks become spaces; every other character that is not printable (control characters, terminal
    escapes, bidirectional overrides, lone surrogates of undecodable paths) is written as an escape.
    """
    flat = _LINE_BREAKS.sub(" ", str(text)).strip().replace("\t", " ")
    if flat.isprintable():
        return flat
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in flat
    )


def shortened(text: str) -> str:
    """Return `text` cut to `MAX_LINE_CHARACTERS`, saying so; the log holds the whole of it."""
    if len(text) <= MAX_LINE_CHARACTERS:
        return text
    return f"{text[:MAX_LINE_CHARACTERS]}… ({len(text) - MAX_LINE_CHARACTERS} more characters in the log)"


def typed_path(path: Path) -> str:
    """Return `path` as a person would type it: below the current folder relative, and quoted for a shell."""
    try:
        short = path.resolve().relative_to(Path.cwd().resolve())
    except (ValueError, OSError):
        short = path
    return shlex.quote(inert(short))

"""How a Python is started here."""

from __future__ import annotations

import json
import os
import sys


def python(counts: str | None = None) -> list[str]:
    """Return the command of a Python here; under an emulator, which may count instructions into the file `counts`."""
    given = os.environ.get("EDGE_LAUNCHER" if counts is None else "EDGE_COUNTING")
    if given is None:
        return [sys.executable]
    return [part.replace("{counts}", str(counts)) for part in json.loads(given)]


def is_emulated() -> bool:
    """Return whether instructions are counted here, for one thread, and time means nothing."""
    return "EDGE_COUNTING" in os.environ

"""How the program ends: when told to, when the link breaks, and not while it cleans up."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_with_the_link() -> None:
    """End the program when the host's side of standard input closes: it went away."""
    # Not sys.stdin: a thread that waits in there holds its lock when the program ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def hold_signals() -> None:
    """Ignore what would end this program: it is ending."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def leave(*_: Any) -> NoReturn:
    """End with everything cleaned up, which no second signal may interrupt."""
    hold_signals()
    raise SystemExit(1)

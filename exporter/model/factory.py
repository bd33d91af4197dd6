"""The user's factory: called once, quietly, within a time limit, its failures told by line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from exporter.errors import InputError, TimeLimitError
from exporter.system.user_code import load_callable

if TYPE_CHECKING:
    import torch

_ALARM_AGAIN_SECONDS = 1.0


def call_factory(
    reference: str, folder: Path, timeout_s: float, log: Path, *, key: str = "model.factory"
) -> torch.nn.Module:
    """Return the module that the user's `file.py:callable` makes, called without arguments.

    A file is looked for in `folder`; `log` receives what it prints; `key` is what the recipe calls it. Raises
    `InputError` (10) for a factory that is not there, fails, or returns something else, and `TimeLimitError`
    (16) for one that does not return within `timeout_s` seconds.
    """
    import torch

    name = f"{key} {reference}"
    fix = f"make it return the module when called without arguments; its output is in {log}"
    with quiet(log), _time_limit(timeout_s, name):
        built = load_callable(reference, folder, key=key, fix=fix)()
    if not isinstance(built, torch.nn.Module):
        raise InputError(
            f"{name} returned {type(built).__name__}, not a torch.nn.Module", fix="return the module itself"
        )
    return built


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what user code prints, also from native code, into `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            with log.open("a", encoding="utf-8") as text, contextlib.redirect_stdout(text):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


@contextlib.contextmanager
def _time_limit(seconds: float, what: str) -> Iterator[None]:
    """Interrupt Python code after `seconds`; outside the main thread there is no alarm, and no limit.

    The alarm rings again every second, for code that catches whatever it is interrupted with.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, _ALARM_AGAIN_SECONDS)
    try:
        yield
    except _TimeIsUp:
        raise TimeLimitError(
            f"{what} did not return within {seconds:g} s",
            fix="look for a loop or a download in it, or raise model.load_timeout_s in the recipe",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that `except Exception` in a user's loop does not swallow it."""

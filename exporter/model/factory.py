"""The user's factory: called once, quietly, within a time limit, its failures told by line."""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from exporter.errors import EdgeError, InputError, TimeLimitError, said
from exporter.system.user_code import import_user_code, user_line

if TYPE_CHECKING:
    import torch

_ALARM_AGAIN_SECONDS = 1.0


def call_factory(reference: str, folder: Path, timeout_s: float, log: Path) -> torch.nn.Module:
    """Return the module that the user's `file.py:callable` makes, called without arguments.

    A file is looked for in `folder`, and may import its neighbours; `log` receives what it prints. Raises
    `InputError` (10) for a factory that is not there, fails, or returns something else, and `TimeLimitError`
    (16) for one that does not return within `timeout_s` seconds.
    """
    import torch

    try:
        with quiet(log), _time_limit(timeout_s, f"factory {reference}"), importable(folder):
            module, attribute = import_user_code(reference, folder)
            factory = _attribute_of(module, attribute)
            built = factory() if callable(factory) else None
    except (EdgeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"factory {reference} failed: {said(error)}{user_line(error)}",
            fix=f"make it return the module when called without arguments; its output is in {log}",
        ) from error
    if not callable(factory):
        names = sorted(
            name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
        )
        raise InputError(
            f"factory {reference}: no callable {attribute}", fix=f"it has {', '.join(names) or 'none'}"
        )
    if not isinstance(built, torch.nn.Module):
        raise InputError(
            f"factory {reference} returned {type(built).__name__}, not a torch.nn.Module",
            fix="return the module itself",
        )
    return built


def _attribute_of(module: ModuleType, dotted: str) -> object:
    try:
        return operator.attrgetter(dotted)(module)
    except AttributeError:
        return None


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, after everything that is installed."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


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

"""The one place where failures end: each becomes one line, one exit status and one trace in the log."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import ClassVar

import click

from exporter.cli.terminal.console import Console, takes_colour
from exporter.cli.terminal.text import inert, shortened
from exporter.errors import (
    INTERRUPTED_EXIT_CODE,
    EdgeError,
    InputError,
    InternalError,
    ResourceError,
    UsageError,
)
from exporter.system.files import cache_folder, state_folder
from exporter.system.urls import without_credentials

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "bad allocation")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE})
_NO_ACCESS = frozenset({errno.EACCES, errno.EPERM})
_NO_SUCH_KIND = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
_NO_PLACE = frozenset({errno.ENOENT, errno.ENOTDIR})


class InterruptedByUser(EdgeError):
    """Ctrl-C: what was unfinished was discarded."""

    code: ClassVar[str] = "E-interrupted"
    exit_code: ClassVar[int] = INTERRUPTED_EXIT_CODE


def run_guarded(action: Callable[[], None], console: Console, arguments: Sequence[str]) -> int:
    """Run `action` and return the exit status; whatever it raises has been told, in one line, by then."""
    with _impatience_respected() as interrupts:
        try:
            action()
            sys.stdout.flush()
        except BrokenPipeError as error:
            if _is_reader_gone():
                return 0
            return _fail(as_edge_error(error, arguments), error, console)
        except click.ClickException as error:
            return _fail(_from_click(error, arguments), None, console)
        except BaseException as error:  # noqa: BLE001 - the boundary: nothing may leave as a traceback
            # Libraries turn a KeyboardInterrupt into errors of their own (torch, while it is being imported).
            told = KeyboardInterrupt() if interrupts.count else error
            return _fail(as_edge_error(told, arguments), error, console)
    return 0


@dataclass(slots=True)
class _Interrupts:
    """How often the user has pressed Ctrl-C during this command."""

    count: int = 0


def as_edge_error(error: BaseException, arguments: Sequence[str] = ()) -> EdgeError:
    """Return the `EdgeError` that says what `error` means to a person; one of ours is itself."""
    match error:
        case EdgeError():
            return error
        case KeyboardInterrupt() | click.Abort():
            return InterruptedByUser(
                "interrupted; nothing unfinished was kept",
                fix=f"to start again run: {_command_line(arguments)}",
            )
        case MemoryError():
            return _out_of_memory(error)
        case RuntimeError() if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            return _out_of_memory(error)
        case OSError() if error.errno in _NO_SPACE:
            return ResourceError(_os_cause(error), fix="free what ran out, or write elsewhere with --out")
        case OSError() if error.errno in _NO_ACCESS and error.filename is not None:
            return InputError(_os_cause(error), fix="change its permissions, or name another path")
        case OSError() if error.errno in _NO_PLACE and (told := _no_place(error)) is not None:
            return told
        case OSError() if error.errno in _NO_SUCH_KIND and error.filename is not None:
            return InputError(
                _os_cause(error),
                fix="something else is in its place, or its name is too long: name another path",
            )
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return InternalError(text, fix="report this as a bug, with the log")


def _out_of_memory(error: BaseException) -> ResourceError:
    detail = f": {error}" if str(error) else ""
    return ResourceError(
        f"memory ran out{detail}",
        fix="close other programs, or use fewer calibration samples or a smaller model",
    )


def _no_place(error: OSError) -> EdgeError | None:
    """Return what a missing folder of the tool's own, or a working folder that is gone, mean; `None` for any other place."""
    try:
        Path.cwd()
    except OSError:
        return InputError("the folder that this command runs in is gone", fix="cd to one that is there")
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    for folder, variable in ((cache_folder(), "XDG_CACHE_HOME"), (state_folder(), "XDG_STATE_HOME")):
        if named is not None and (named in folder.parents or named.is_relative_to(folder)):
            return InputError(
                f"the tool's own folder {folder} cannot be made: {_os_cause(error)}",
                fix=f"set {variable} to a folder that can be written",
            )
    return None


def _os_cause(error: OSError) -> str:
    name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{name}{error.strerror or error}"


def _command_line(arguments: Sequence[str]) -> str:
    import shlex

    return shlex.join(["edge-export", *map(without_credentials, arguments)])


def _from_click(error: click.ClickException, arguments: Sequence[str]) -> UsageError:
    """Return click's complaint with a fix in place of its page of usage."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    # Errors of click's parser know no context; then the first word says which command was meant.
    command = next((word for word in arguments if not word.startswith("-")), "")
    path = context.command_path if context else f"edge-export {command}".rstrip()
    fix = f"run: {path} --help"
    if isinstance(error, click.NoSuchOption):
        if error.possibilities:
            fix = f"did you mean {' or '.join(sorted(error.possibilities))}?"
        cause = f"no option is called {error.option_name!r}"
        return UsageError(f"{path}: {cause}", fix=fix)
    if isinstance(error, click.MissingParameter) and context is not None:
        fix = f"write: {' '.join([path, *context.command.collect_usage_pieces(context)])}"
    return UsageError(f"{path}: {error.format_message().rstrip('.')}", fix=fix)


def _fail(error: EdgeError, origin: BaseException | None, console: Console) -> int:
    """Tell `error`; the work is over, so further interrupts are ignored while that is done."""
    _ignore_interrupts()
    log = console.log.record(origin) if origin is not None else None
    cause, fix = error.cause, error.fix
    if isinstance(error, InternalError) and log is not None:
        fix = f"{fix} {log}" if fix.endswith("with the log") else f"{fix} (log: {log})"
    with contextlib.suppress(OSError):  # nobody reads, or its disk is full: the exit status tells
        _write_line(error.code, shortened(inert(cause)), shortened(inert(fix)))
        if console.verbose and log is not None:
            console.tell(f"log: {log}")
    with contextlib.suppress(BrokenPipeError):
        if console.json and not console.has_answered_json:
            console.answer_json(
                {
                    "error": {
                        "code": error.code,
                        "exit_code": error.exit_code,
                        "cause": cause,
                        "fix": fix,
                        "details": error.details,
                        "log": None if log is None else str(log),
                    }
                }
            )
        sys.stdout.flush()
    return error.exit_code


def _write_line(code: str, cause: str, fix: str) -> None:
    label = f"error[{code}]:"
    if takes_colour(sys.stderr):
        label = f"\x1b[1;31m{label}\x1b[0m"
    sys.stderr.write(f"{label} {cause}; fix: {fix}\n")
    sys.stderr.flush()


def _is_reader_gone() -> bool:
    """Whether it was stdout whose reader left (`| head`), rather than a pipe of ours to somebody else.

    If so, stdout is pointed at nothing, so that what is still buffered cannot fail the interpreter's exit.
    """
    poll = select.poll()
    poll.register(1, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    return True


def _ignore_interrupts() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _impatience_respected() -> Iterator[_Interrupts]:
    """The first Ctrl-C raises `KeyboardInterrupt`; a second, while that one cleans up, ends at once.

    What a clean-up cut short leaves behind is removed by the next run, as after a kill.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _Interrupts()
        return
    interrupts = _Interrupts()
    terminal = os.dup(2)  # of our own: stderr is the log while work goes on

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupts.count += 1
        if interrupts.count == 1:
            raise KeyboardInterrupt
        show_cursor = "\x1b[?25h" if os.isatty(terminal) else ""
        line = "error[E-interrupted]: interrupted twice; fix: the next run removes what was left unfinished"
        os.write(terminal, f"{show_cursor}{line}\n".encode())
        os._exit(INTERRUPTED_EXIT_CODE)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(terminal)

"""Run one function in a child process, so that its noise, its memory and its crashes stay there.

Converters print pages and abort; runtimes die by signal on malformed files. The child's stdout and stderr
go to a log file, its failures come back as the same `EdgeError` class, and a death by signal is named with
the stage and the file it was working on. Peak memory and wall time of the child are measured here.

Knows nothing of models or formats: a request and a result are JSON objects; arrays travel as files.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from exporter import errors
from exporter.system.files import disk_errors, scratch_folder
from exporter.system.isolation.child import Job
from exporter.system.isolation.fresh import FreshChild
from exporter.system.isolation.inheritance import Interpreter
from exporter.system.isolation.warm import RefusedError, ServerLostError, WarmChild, is_possible

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "bad allocation")


@dataclass(frozen=True, slots=True)
class IsolatedResult:
    """What a child returned, with its wall time in seconds and its peak resident memory in MB (10^6 bytes)."""

    value: dict[str, Any]
    seconds: float
    peak_rss_mb: float


def call_isolated(
    function: str,
    request: Mapping[str, Any],
    *,
    stage: str,
    subject: str,
    log: Path,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
    preload: Sequence[str] = (),
    python: Path | None = None,
) -> IsolatedResult:
    """Call `function` (`"package.module:name"`, dict → dict) in a process of its own and return its result.

    `stage` and `subject` (a file or artifact) appear in error messages; `log` receives the child's output.
    The child sees this process' modules, environment (with `environment` added), working folder, limits and mask as
    they are now. `python` is its interpreter, by default the one that runs this. `preload` names the installed
    libraries that it will need: the child is forked from a warm process that has imported them, one for all calls that
    name the same interpreter, libraries and environment. Where that cannot be done soundly the child is a new
    interpreter, and `log` says why.

    Raises the child's own `EdgeError`; `TimeLimitError` past `timeout_s`; `ResourceError` if the child ran
    out of memory; `InternalError` if it died by another signal or without an answer.
    """
    started = time.monotonic()
    with scratch_folder("isolated") as scratch:
        job = Job(function, str(scratch / "request.json"), str(scratch / "result.json"))
        Path(job.request).write_text(json.dumps(request), encoding="utf-8")
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = log.open("ab", buffering=0)
        with sink:
            try:
                how = Interpreter(str(python or sys.executable), tuple(preload), environment or {})
                status = _run(job, how, sink, timeout_s)
            except TimeoutError as expired:
                raise errors.TimeLimitError(
                    f"{stage} of {subject} took longer than {timeout_s:.0f} s",
                    fix=f"give it more time or a smaller model; its output is in {log}",
                ) from expired
        answer = _read_answer(Path(job.result))
    if answer is None:
        raise _died(status, stage, subject, log)
    if "error" in answer:
        raise _rebuild(answer["error"], stage, subject, log)
    return IsolatedResult(answer["value"], time.monotonic() - started, answer["peak_rss_mb"])


class _Child(Protocol):
    """A job at work in another process."""

    def wait(self, timeout_s: float | None) -> int:
        """Return the exit status (negative: the signal it died of); `TimeoutError` if it takes longer."""

    def end(self) -> None:
        """Kill what is left of it."""


def _run(
    job: Job,
    how: Interpreter,
    sink: BinaryIO,
    timeout_s: float | None,
) -> int:
    """Do `job` in the cheapest way that is sound, and return how its process ended; `TimeoutError` past `timeout_s`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    if how.preload and is_possible():
        try:
            return _in_a_fork(partial(WarmChild, job, how, sink), deadline)
        except RefusedError as refused:
            sink.write(f"in a fresh interpreter, as no warm one can be had: {refused}\n".encode())
    return _attend(partial(FreshChild, job, how, sink), deadline)


def _in_a_fork(start: Callable[[], WarmChild], deadline: float | None) -> int:
    try:
        return _attend(start, deadline)
    except ServerLostError:  # killed while it was idle, or gone to rest at this very moment
        try:
            return _attend(start, deadline)
        except ServerLostError as lost:
            raise RefusedError("it died twice before it took the job") from lost


def _attend(start: Callable[[], _Child], deadline: float | None) -> int:
    with _interrupts_held() as let_interrupts_in:
        child = start()
        try:
            let_interrupts_in()
            return child.wait(None if deadline is None else deadline - time.monotonic())
        finally:
            child.end()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called, so that no child is started and then forgotten."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def let_in() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield let_in
    finally:
        let_in()


def _read_answer(path: Path) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return answer


def _died(status: int, stage: str, subject: str, log: Path) -> errors.EdgeError:
    if status < 0:
        number = -status
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if name == "SIGKILL":
            return errors.ResourceError(
                f"{stage} of {subject} was killed ({name}), most likely for lack of memory",
                fix=f"free memory or take a smaller model or batch; its output is in {log}",
            )
        return errors.InternalError(
            f"{stage} of {subject} died of {name}", fix=f"leave this artifact out of the recipe; see {log}"
        )
    return errors.InternalError(
        f"{stage} of {subject} ended with status {status} and no answer", fix=f"read its output in {log}"
    )


def _rebuild(error: dict[str, Any], stage: str, subject: str, log: Path) -> errors.EdgeError:
    kind = getattr(errors, error["class"], None)
    if isinstance(kind, type) and issubclass(kind, errors.EdgeError):
        return kind(error["cause"], fix=error["fix"], details=error["details"])
    if error["class"] == "MemoryError" or any(sign in error["cause"] for sign in _OUT_OF_MEMORY):
        return errors.ResourceError(
            f"{stage} of {subject} ran out of memory", fix="free memory or take a smaller model"
        )
    return errors.InternalError(
        f"{stage} of {subject} failed with {error['class']}: {error['cause']}",
        fix=f"leave this artifact out of the recipe, or read the full output in {log}",
    )

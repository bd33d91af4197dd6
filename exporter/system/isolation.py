"""Run one function in a child process, so that its noise, its memory and its crashes stay there.

Converters print pages and abort; runtimes die by signal on malformed files. The child's stdout and stderr
go to a log file, its failures come back as the same `EdgeError` class, and a death by signal is named with
the stage and the file it was working on. Peak memory and wall time of the child are measured here.

Knows nothing of models or formats: a request and a result are JSON objects; arrays travel as files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import errors
from exporter.system.files import disk_errors, scratch_folder

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "bad allocation")
_PR_SET_PDEATHSIG = 1


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
    python: Path | None = None,
) -> IsolatedResult:
    """Call `function` (`"package.module:name"`, dict → dict) in a fresh interpreter and return its result.

    `stage` and `subject` (a file or artifact) appear in error messages; `log` receives the child's output.
    `python` is the interpreter, by default the one that runs this; `environment` is added to the variables it gets.

    Raises the child's own `EdgeError`; `TimeLimitError` past `timeout_s`; `ResourceError` if the child ran
    out of memory; `InternalError` if it died by another signal or without an answer.
    """
    started = time.monotonic()
    with scratch_folder("isolated") as scratch:
        request_path, result_path = scratch / "request.json", scratch / "result.json"
        request_path.write_text(json.dumps(request), encoding="utf-8")
        command = [
            str(python or sys.executable),
            "-m",
            "exporter.system.isolation",
            function,
            str(request_path),
            str(result_path),
        ]
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = log.open("ab")
        with sink, _interrupts_held() as let_interrupts_in:
            child = subprocess.Popen(
                [*command, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONWARNINGS": "ignore",
                    "PYTHONPATH": _search_path(),
                    **(environment or {}),
                },
                start_new_session=True,
            )
            try:
                let_interrupts_in()
                status = child.wait(timeout_s)
            except subprocess.TimeoutExpired as expired:
                raise errors.TimeLimitError(
                    f"{stage} of {subject} took longer than {timeout_s:.0f} s",
                    fix=f"give it more time or a smaller model; its output is in {log}",
                ) from expired
            finally:
                _end(child)
        answer = _read_answer(result_path)
    if answer is None:
        raise _died(status, stage, subject, log)
    if "error" in answer:
        raise _rebuild(answer["error"], stage, subject, log)
    return IsolatedResult(answer["value"], time.monotonic() - started, answer["peak_rss_mb"])


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


def _search_path() -> str:
    # The child must find what the parent finds, also when the parent runs from a source tree.
    return os.pathsep.join(entry for entry in sys.path if entry)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group, so that nothing outlives the call."""
    # macOS says "not permitted" of a group whose last member has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


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


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)


def _peak_rss_mb() -> float:
    """Return the peak resident memory of this process or of its largest child, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists():
        # Linux carries ru_maxrss of the forking parent across exec; the high-water mark starts anew.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        own = int(line.split()[1]) * 1024
    return max(own, children) / 1e6


def _child_main(function: str, request_path: str, result_path: str, parent: str) -> None:
    import traceback

    _die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    module, _, name = function.partition(":")
    answer: dict[str, Any]
    try:
        request = json.loads(Path(request_path).read_text(encoding="utf-8"))
        with disk_errors(Path(result_path)):
            value = getattr(importlib.import_module(module), name)(request)
        answer = {"value": value, "peak_rss_mb": _peak_rss_mb()}
    except errors.EdgeError as error:
        answer = {"error": _plain_error(error, error.cause, error.fix, error.details)}
    except Exception as error:  # noqa: BLE001 - this is the boundary of the child: everything becomes an answer
        traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        answer = {"error": _plain_error(error, text[0][:500], "", {})}
    temporary = Path(result_path + ".part")
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    temporary.replace(result_path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # skip interpreter teardown, where native libraries of converters are known to crash


def _plain_error(error: BaseException, cause: str, fix: str, details: dict[str, Any]) -> dict[str, Any]:
    return {"class": type(error).__name__, "cause": cause, "fix": fix, "details": details}


if __name__ == "__main__":
    _child_main(*sys.argv[1:5])

"""What runs in a child: one function, its answer or its failure in a file, and the way out.

Knows nothing of who started the process, nor how: a new interpreter or a fork of a warm one.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from exporter import errors
from exporter.system.files import disk_errors

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is to do: call `function` (`"package.module:name"`) on `request`, and leave `result`, both JSON files."""

    function: str
    request: str
    result: str


def run(job: Job) -> NoReturn:
    """Do `job` and end this process: with status 0 if it left a result, else with what its function ended with."""
    status = 1
    try:
        _write(_answer(job), Path(job.result))
        status = 0
    except SystemExit as leaving:
        status = _status_of(leaving)
    except BaseException:  # noqa: BLE001 - nothing of a job may reach whoever forked it: an answer that JSON cannot say
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # skip interpreter teardown, where native libraries of converters are known to crash


def _answer(job: Job) -> dict[str, Any]:
    module, _, name = job.function.partition(":")
    try:
        request = json.loads(Path(job.request).read_text(encoding="utf-8"))
        with disk_errors(Path(job.result)):
            value = getattr(importlib.import_module(module), name)(request)
    except errors.EdgeError as error:
        return {"error": _plain_error(error, error.cause, error.fix, error.details)}
    except Exception as error:  # noqa: BLE001 - this is the boundary of the child: everything becomes an answer
        traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        return {"error": _plain_error(error, text[0][:500], "", {})}
    return {"value": value, "peak_rss_mb": peak_rss_mb()}


def _plain_error(error: BaseException, cause: str, fix: str, details: dict[str, Any]) -> dict[str, Any]:
    return {"class": type(error).__name__, "cause": cause, "fix": fix, "details": details}


def _write(answer: dict[str, Any], path: Path) -> None:
    temporary = Path(f"{path}.part")
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    temporary.replace(path)


def _status_of(leaving: SystemExit) -> int:
    """Return the status that an interpreter ends with when `leaving` reaches it."""
    if leaving.code is None or isinstance(leaving.code, int):
        return (leaving.code or 0) & 0xFF
    sys.stderr.write(f"{leaving.code}\n")
    return 1


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, however that happens; at once if `parent` is dead already.

    "Parent" is the thread that started this process: only one that lives as long as its process may be relied on.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process or of its largest child, in MB (10^6 bytes).

    What libraries allocated counts, whether the process imported them or shares those pages with the one that it was
    forked from; of their files, what it touched itself. What its parent or an earlier job held at a peak of theirs does
    not count: Linux starts the high-water mark anew at a fork.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists():
        # Linux carries ru_maxrss of the forking parent across exec.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        own = int(line.split()[1]) * 1024
    return max(own, children) / 1e6

"""Functions for children of the isolation tests: each misbehaves in one way."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from exporter.errors import CalibrationError


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked."""
    return {"echo": request}


def die(request: dict[str, Any]) -> dict[str, Any]:
    """Die of a signal."""
    os.kill(os.getpid(), request["signal"])
    signal.pause()
    return {}


def loop(request: dict[str, Any]) -> dict[str, Any]:
    """Say that the child is there, start a grandchild, and never end."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(request["ready"]).write_text(f"{os.getpid()} {grandchild.pid}")
    signal.pause()
    return {}


def shout(request: dict[str, Any]) -> dict[str, Any]:
    """Print megabytes by every way there is."""
    line = b"noise\n" * 100_000
    os.write(1, line)
    os.write(2, line)
    print("noise\n" * 100_000)
    return {"big": "x" * request["bytes"]}


def leave(request: dict[str, Any]) -> dict[str, Any]:
    """Exit as converters do."""
    sys.exit(request["status"])


def fail(request: dict[str, Any]) -> dict[str, Any]:
    """Raise what was asked for."""
    match request["kind"]:
        case "ours":
            raise CalibrationError("tensor 'x' is empty", fix="fill it", details={"tensor": "x"})
        case "memory":
            raise MemoryError
        case "native memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device", str(Path(request["path"])))
        case _:
            raise KeyError("no such operator\nand a page of noise")


def unspeakable(request: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON cannot say."""
    return {"value": {1, 2}}


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return what this process finds, and then leave everything changed and much memory held."""
    import builtins
    import random

    import numpy as np

    found = {
        "global": getattr(builtins, "left_behind", None),
        "module": "left_behind" in sys.modules,
        "variable": os.environ.get("LEFT_BEHIND"),
        "folder": str(Path.cwd()),
        "umask": os.umask(0o077),
        "path": sys.path[:2],
        "error state": np.geterr()["divide"],
        "numpy": float(np.random.random()),
        "random": random.random(),
        "value": importlib.import_module("written_just_now").VALUE if request.get("written") else None,
        "test": os.environ.get("PYTEST_CURRENT_TEST"),
        "parent": os.getppid(),
    }
    builtins.left_behind = sys.modules["left_behind"] = "here"  # type: ignore[attr-defined, assignment]
    os.environ["LEFT_BEHIND"] = "here"
    os.chdir("/")
    sys.path.insert(0, "/left/behind")
    np.seterr(divide="raise")
    np.random.seed(7)
    random.seed(7)
    if size := request.get("hold", 0):
        builtins.left_behind = b"x" * size  # type: ignore[attr-defined]
    return found


def limit(request: dict[str, Any]) -> dict[str, Any]:
    """Return the largest core file that this process may leave."""
    import resource

    return {"core": resource.getrlimit(resource.RLIMIT_CORE)[0]}


def meet(request: dict[str, Any]) -> dict[str, Any]:
    """Say to another job that this one is there, and wait for its word."""
    with Path(request["mine"]).open("wb", buffering=0) as mine, Path(request["theirs"]).open("rb") as theirs:
        mine.write(b"x")
        return {"met": theirs.read(1) == b"x"}

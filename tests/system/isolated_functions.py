"""Functions for children of the isolation tests: each misbehaves in one way."""

from __future__ import annotations

import errno
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

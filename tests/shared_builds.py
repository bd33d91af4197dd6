"""What is built once for a whole test run, whichever of its processes asks first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `name` of this test run, which `make` filled, called with it, in one of its processes.

    The others wait. What is in it is never to be changed. A `make` that fails is tried again by the next who asks, in
    an empty folder.
    """
    base = factory.getbasetemp()
    # With xdist each worker has a folder of its own below the run's.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shared = run / "shared"
    shared.mkdir(exist_ok=True)
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _empty(folder)
            make(folder)
            done.touch()
    return folder


def _empty(folder: Path) -> None:
    number = 0
    while folder.exists():
        number += 1
        if not (failed := folder.with_name(f"{folder.name}-failed-{number}")).exists():
            folder.rename(failed)
    folder.mkdir()

"""What a child takes over from the process that starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# These say where the caller stands, and change as it goes: no library reads them when it is imported.
CHANGING = ("COLUMNS", "LINES", "OLDPWD", "PWD", "PYTEST_CURRENT_TEST", "SHLVL", "_")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What a job is to run in: a Python, the libraries that it will need, and what is added to its environment."""

    python: str
    preload: tuple[str, ...]
    environment: Mapping[str, str]


def environment_of_child(additions: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a child: those of this process, with `additions`; it finds the same modules."""
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": _search_path(), **additions}


def _search_path() -> str:
    """Return where the child looks for modules: where this process does, also when it runs from a source tree."""
    entries = sys.path
    try:
        here = str(Path.cwd())
    except FileNotFoundError:  # a working folder that is gone holds no module
        here, entries = "", [entry for entry in entries if entry]
    # What is no path is a word that an import hook goes by.
    return os.pathsep.join(str(Path(here, entry)) if Path(entry).exists() else entry for entry in entries)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a process takes over when it starts and cannot be told later: a library may have acted on it by then."""

    environment: Mapping[str, str]
    umask: str
    limits: str
    cpus: frozenset[int]
    niceness: int


def inherited(additions: Mapping[str, str]) -> Inherited:
    """Return what a child that starts now, with `additions` to its environment, takes over (Linux only)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    environment = environment_of_child(additions)
    return Inherited(
        environment={name: value for name, value in environment.items() if name not in CHANGING},
        # To ask the system for the mask is to change it, for all threads.
        umask=next((line for line in status.splitlines() if line.startswith("Umask:")), ""),
        limits=Path("/proc/self/limits").read_text(encoding="utf-8"),
        cpus=frozenset(os.sched_getaffinity(0)),
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
    )

"""The part of the probe that makes a Python environment on the device; it travels beside the probe when one is wanted.

The environment lies below `~/.cache/edge-exporter` in a folder named after what is in it. It is made beside its place and
renamed into it: it is whole or it is not there. Nothing else on the device is touched. Standard library, Python ≥ 3.9.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Say = Callable[[Json], None]
Refuse = Callable[[str, str], Exception]

LAYOUT = 1
MAKING = ".making-venv-"
NO_NETWORK = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "Failed to establish a new connection",
    "name resolution",
    "Network is unreachable",
    "Connection refused",
    "Connection reset",
    "Connection broken",
    "timed out",
)
CHECK = """
import importlib, sys
from importlib.metadata import version
for item in sys.argv[1:]:
    name, _, pin = item.partition("==")
    importlib.import_module({"ai-edge-litert": "ai_edge_litert.interpreter"}.get(name, name))
    if pin and version(name).partition("+")[0] != pin:
        raise ImportError(f"{name} is {version(name)}, not {pin}")
"""
"""Imports what was installed and compares the versions."""


def serve(request: Json, folder: Path, say: Say, refuse: Refuse) -> Json:
    """Answer a `describe` or an `install`: what Python is here, and the environment's Python if it is whole.

    `folder` is the scratch folder, with carried wheels in `wheels/`; `refuse(cause, fix)` makes what is raised.
    """
    wanted = list(request["requirements"])
    if request["do"] == "install":
        make(request, folder, say, refuse)
    return {**describe(), "ready": ready(wanted)}


def describe() -> Json:
    """Return what decides which wheels fit here, and why no environment can be made (`cannot`), if so."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "bits": 8 * struct.calcsize("P"),
        "libc": list(platform.libc_ver()),
        "cannot": cannot(),
    }


def cannot() -> str | None:
    """Return which module of the standard library is missing (Debian packs them apart), or None."""
    for name in ("venv", "ensurepip"):
        try:
            __import__(name)
        except ImportError:
            return f"{sys.executable} (Python {platform.python_version()}) has no module {name}"
    return None


def shelf() -> Path:
    """Return the folder of all environments."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "edge-exporter"


def place(wanted: list[str]) -> Path:
    """Return where the environment with `wanted` lies, for this Python on this machine."""
    recipe = json.dumps([LAYOUT, sorted(wanted), sys.version_info[:2], platform.machine()])
    return shelf() / f"venv-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def ready(wanted: list[str]) -> str | None:
    """Return the Python of the environment if everything in it imports."""
    python = place(wanted) / "bin" / "python"
    return str(python) if python.exists() and fault(python, wanted) is None else None


def fault(python: Path, wanted: list[str]) -> str | None:
    """Return why `wanted` cannot be imported by `python`, or None."""
    code, told = run([str(python), "-I", "-c", CHECK, *wanted])
    if code < 0:
        return f"importing it dies with signal {-code}: its wheel is not for this processor"
    return last(told) if code else None


def make(request: Json, folder: Path, say: Say, refuse: Refuse) -> None:
    """Make the environment, one process at a time; what a killed one left is removed first."""
    wanted, shown = list(request["requirements"]), " ".join(request["requirements"])
    try:
        shelf().mkdir(parents=True, exist_ok=True)
        with locked(shelf() / "venv.lock", say) as lock:
            if ready(wanted) is not None:
                return
            for stale in shelf().glob(MAKING + "*"):
                shutil.rmtree(stale, ignore_errors=True)
            require_room(shelf(), request["need_bytes"], refuse)
            staging = Path(tempfile.mkdtemp(prefix=MAKING, dir=shelf()))
            try:
                fill(staging, request, folder, say, refuse, lock)
                put(staging, place(wanted))
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise refuse(
            f"{shown} cannot be installed below {shelf()}: {error.strerror or error}",
            "make that folder writable, or set XDG_CACHE_HOME on the device to another",
        ) from None


def fill(staging: Path, request: Json, folder: Path, say: Say, refuse: Refuse, lock: int) -> None:
    """Make a virtual environment in `staging` and install what is wanted.

    venv and pip hold the lock too: should this program be killed, nobody works beside what it left running.
    """
    wanted, python = list(request["requirements"]), str(staging / "bin" / "python")
    rooms = {each: shutil.disk_usage(each).free for each in (shelf(), folder)}
    pip = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pip += ["--no-cache-dir", "--no-compile", "--only-binary", ":all:", "--retries", "2"]
    source = ["--no-index", "--find-links", str(folder / "wheels")] if request["carried"] else []
    for label, command in (
        ("make a virtual environment", [sys.executable, "-I", "-m", "venv", "--without-pip", str(staging)]),
        ("install pip there", [python, "-I", "-m", "ensurepip", "--default-pip"]),
        ("install " + " ".join(wanted), [*pip, *source, *wanted]),
    ):
        say({"event": "step", "label": label})
        code, told = run(command, lock)
        if code:
            raise refusal(told, request, rooms, refuse, label)
    why = fault(Path(python), wanted)
    if why is not None:
        raise refuse(
            f"{' '.join(wanted)} is installed and does not work here: {why}",
            "install a system for this board's processor, or name another Python with --python",
        )


def put(staging: Path, home: Path) -> None:
    """Rename `staging` to `home`; what lies there is broken and goes."""
    old = staging.with_name(staging.name + "-old")
    if os.path.lexists(home):
        home.rename(old)
    staging.rename(home)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    elif os.path.lexists(old):
        old.unlink()


def require_room(folder: Path, need_bytes: int, refuse: Refuse) -> None:
    """Raise if less than `need_bytes` are free in `folder`."""
    room = shutil.disk_usage(folder).free
    if room < need_bytes:
        raise refuse(
            f"{folder} needs {need_bytes / 1e6:.0f} MB free, has {room / 1e6:.0f} MB",
            "free some, or set XDG_CACHE_HOME on the device to a larger disk",
        )


def refusal(told: str, request: Json, rooms: dict[Path, int], refuse: Refuse, label: str) -> Exception:
    """Return what pip or venv meant by `told`; `rooms` are the bytes that were free at the start."""
    if "No space left on device" in told or "Disk quota exceeded" in told:
        fullest = min(rooms, key=lambda each: shutil.disk_usage(each).free)
        need, room = request["need_bytes"], rooms[fullest]
        return refuse(
            f"{label}: {fullest} filled up: {room / 1e6:.0f} MB were free, about {need / 1e6:.0f} MB are needed",
            "free some, or set XDG_CACHE_HOME and TMPDIR on the device to a larger disk",
        )
    if any(sign in told for sign in NO_NETWORK):
        return refuse(
            f"pip on the device reaches no package index: {last(told, NO_NETWORK)}",
            "connect the device to the network, or let this host carry the wheels: --bootstrap carry",
        )
    missing = no_wheel(told, describe())
    fix = "make an environment by hand there, and name its Python with --python"
    return refuse(*missing) if missing else refuse(f"{label}: {last(told)}", fix)


def no_wheel(told: str, here: Json) -> tuple[str, str] | None:
    """Return cause and fix if pip found no wheel that fits the Python and machine `here`, else None."""
    found = re.search(r"satisfies the requirement (\S+).*?\(from versions: ([^)]*)\)", told)
    if found is None:
        return None
    versions = [each.strip() for each in found[2].split(",")]
    others = "no version has one" if versions == ["none"] else "the newest is " + versions[-1]
    libc = " ".join(here["libc"]) or "no glibc"
    fix = (
        "install the 64-bit Raspberry Pi OS"
        if here["bits"] == 32
        else "name a Python of the device that has wheels (64-bit, 3.11 or newer, glibc 2.28 or newer) with --python"
    )
    return (
        f"there is no wheel of {found[1]} for {here['bits']}-bit Python {here['python']} on {here['machine']}, "
        f"{libc}; {others}",
        fix,
    )


def run(command: list[str], *held: int) -> tuple[int, str]:
    """Return a command's exit code and all it said; it has the files `held`, and ends with this program."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=held,
        env={**os.environ, "PIP_USER": "0", "LC_ALL": "C.UTF-8"},
    )
    try:
        told, _ = child.communicate()
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    return child.returncode, told


def last(told: str, signs: tuple[str, ...] = ("",)) -> str:
    """Return the last line of `told` with one of `signs` in it."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return ([line for line in lines if any(sign in line for sign in signs)] or ["it said nothing"])[-1][:300]


@contextlib.contextmanager
def locked(path: Path, say: Say) -> Iterator[int]:
    """Hold the lock in `path`, waiting for whoever has it; yield its descriptor."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say({"event": "step", "label": "another bench makes an environment there: waiting"})
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()

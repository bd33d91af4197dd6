"""Wheels for another machine than this one: which fit it, and pip to fetch them here."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import DeviceError
from exporter.system.files import cache_folder
from targets.devices import installer
from targets.devices.base import last_line

_OLDEST_GLIBC = 17
_NARROW = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
"""What a 32-bit Python runs as on a 64-bit kernel."""


def download(requirements: Iterable[str], python: str, platforms: Iterable[str], folder: Path) -> str | None:
    """Fetch wheels for another Python (`3.11`) and other platforms into `folder`; return pip's complaint, if any."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--no-input", "--only-binary", ":all:", "--python-version", python]
    command += [part for name in platforms for part in ("--platform", name)]
    ran = subprocess.run(
        [*command, "--dest", str(folder), *requirements], capture_output=True, text=True, check=False
    )
    return (ran.stderr.strip() or "pip said nothing") if ran.returncode else None


def fetch_wheels(requirements: Sequence[str], here: dict[str, Any], where: str) -> list[Path]:
    """Return wheels of `requirements` and all they need for the device that is `here`, from the cache if there.

    `here` is what `installer.describe` told. Raises `DeviceError` (18) if there are none or they cannot be fetched.
    """
    if here["bits"] == 32:
        here = {**here, "machine": _NARROW.get(here["machine"], here["machine"])}
    recipe = json.dumps([sorted(requirements), here["python"], here["machine"], here["libc"]])
    home = cache_folder() / "wheels" / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if not home.is_dir():
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            _fetch_whole(home, requirements, here, where)
        except OSError as error:
            raise DeviceError(
                f"the wheels for {where} cannot be kept in {home.parent}: {error.strerror or error}",
                fix="free 200 MB there, or set XDG_CACHE_HOME to a folder that can be written",
            ) from error
    return sorted(home.glob("*.whl"))


def _fetch_whole(home: Path, requirements: Sequence[str], here: dict[str, Any], where: str) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "wheels"
        complaint = download(requirements, here["python"], _platforms(here, where), made)
        if complaint is not None:
            raise _refusal(complaint, here, where)
        try:
            made.rename(home)
        except OSError:
            if not home.is_dir():  # otherwise another process was quicker
                raise


def _platforms(here: dict[str, Any], where: str) -> list[str]:
    """Return the platform tags that the device takes."""
    name, version = here["libc"]
    found = re.fullmatch(r"2\.([0-9]{1,3})", version)
    if name != "glibc" or found is None:
        raise DeviceError(
            f"{where}: the runtimes' wheels need glibc 2.28 or newer; found {name} {version}".rstrip(),
            fix="install the 64-bit Raspberry Pi OS, or another glibc system",
        )
    minors = range(int(found[1]), _OLDEST_GLIBC - 1, -1)
    return [f"{tag}_{here['machine']}" for tag in (*(f"manylinux_2_{n}" for n in minors), "manylinux2014")]


def _refusal(complaint: str, here: dict[str, Any], where: str) -> DeviceError:
    if any(sign in complaint for sign in installer.NO_NETWORK):
        return DeviceError(
            f"pip on this host reaches no package index: {installer.last(complaint, installer.NO_NETWORK)}",
            fix="check this host's network, then run the same command again",
        )
    cause, fix = installer.no_wheel(complaint, here) or (
        f"pip on this host could not fetch wheels: {last_line(complaint)}",
        "check this host's network and that its Python has pip",
    )
    return DeviceError(f"{where}: {cause}", fix=fix)


def unpacked_bytes(wheels: Iterable[Path]) -> int:
    """Return how much room the files of `wheels` take."""
    total = 0
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            total += sum(item.file_size for item in archive.infolist())
    return total

"""Set the virtual Pi up, once: Debian packages and PyPI wheels into one cache folder, no root needed."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as resources
from pathlib import Path

from exporter.errors import DeviceError
from exporter.system.files import cache_folder
from targets.devices.base import last_line
from targets.devices.virtual_pi.cores import CORES, Core
from targets.devices.virtual_pi.debian import MIRROR, Archive
from targets.devices.wheels import download

_LAYOUT = 1
_HOSTS = {"x86_64": ("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2")}
_EMULATOR = ("qemu-user", "tcc")
_USERLAND = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "zlib1g")
_NEEDLESS = ("debconf", "debconf-2.0", "dpkg", "perl", "libc6-dev")
_WHEELS = {"numpy": "2.4.6", "onnxruntime": "1.32.0", "ai-edge-litert": "2.3.0"}
"""What is taken where the host itself has none; otherwise the host's own versions."""
_TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_GUEST_PYTHON = "3.11"


@dataclass(frozen=True, slots=True)
class VirtualPi:
    """A finished cache folder."""

    home: Path

    @property
    def python(self) -> str:
        """The guest's Python."""
        return str(self.home / "userland" / "usr" / "bin" / "python3.11")

    def root(self, core: Core) -> Path:
        """Return the folder that the guest sees as `/` before it sees the host's."""
        return self.home / core.name

    def emulator(self, core: Core) -> list[str]:
        """Return the emulator's command without the guest's; it stands on no library of the host."""
        return [*_native(self.home, "qemu-aarch64"), "-cpu", core.name, "-L", str(self.root(core))]

    def counting(self) -> list[str]:
        """Return the emulator's arguments that count instructions into the file `{counts}`."""
        return ["-plugin", f"{self.home / 'counter.so'},out={{counts}}"]

    def environment(self) -> dict[str, str]:
        """Return the guest's whole environment."""
        return {
            "PATH": str(self.home / "userland" / "usr" / "bin"),
            "PYTHONHOME": str(self.home / "userland" / "usr"),
            "PYTHONPATH": str(self.home / "wheels"),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        }


def set_up(say: Callable[[str], None], *, mirror: str = MIRROR, cache: Path | None = None) -> VirtualPi:
    """Return the virtual Pi in `cache` (`~/.cache/edge-exporter`), made first if it is not there: about 350 MB.

    Raises `DeviceError` (18) on a host that is no x86-64 Linux or has no network, `IntegrityError` (19) if a package has
    other bytes than Debian's index says.
    """
    if sys.platform != "linux" or platform.machine() not in _HOSTS:
        raise DeviceError(
            f"the emulated Pi needs an x86-64 Linux host; this is {sys.platform} on {platform.machine()}",
            fix="measure on a board with --on ssh://…",
        )
    wheels = {name: _installed(name) or fallback for name, fallback in _WHEELS.items()}
    counter = resources("targets.devices.virtual_pi").joinpath("counter.c").read_bytes()
    recipe = json.dumps([_LAYOUT, _EMULATOR, _USERLAND, wheels, hashlib.sha256(counter).hexdigest()])
    shelf = (cache or cache_folder()) / "virtual-pi"
    home = shelf / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if not (home / "contents.json").is_file():
        try:
            shelf.mkdir(parents=True, exist_ok=True)
            _make_whole(home, wheels, counter, mirror, say)
        except OSError as error:
            raise DeviceError(
                f"the emulated Pi cannot be unpacked below {shelf}: {error.strerror or error}",
                fix="free 500 MB there, or set XDG_CACHE_HOME to a folder that can be written",
            ) from error
    return VirtualPi(home)


def _make_whole(
    home: Path, wheels: dict[str, str], counter: bytes, mirror: str, say: Callable[[str], None]
) -> None:
    """Make `home` beside its place and move it there: it is whole or it is not there."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "home"
        _make(made, wheels, counter, mirror, say)
        try:
            made.rename(home)
        except OSError:
            if not (home / "contents.json").is_file():  # otherwise another process was quicker
                raise


def _make(
    home: Path, wheels: dict[str, str], counter: bytes, mirror: str, say: Callable[[str], None]
) -> None:
    native = Archive(_HOSTS[platform.machine()][0], mirror)
    emulator = native.closure(_EMULATOR, _NEEDLESS)
    native.unpack(emulator, home / "emulator", say)
    foreign = Archive("arm64", mirror)
    userland = foreign.closure(_USERLAND, _NEEDLESS)
    foreign.unpack(userland, home / "userland", say)
    taken = _unpack_wheels(home, wheels, say)
    for core in CORES.values():
        root = home / core.name
        core.write(root)
        for name in ("etc", "lib", "usr"):
            (root / name).symlink_to(Path("..") / "userland" / name)
    _compile(home, counter)
    contents = {
        "emulator": {package.name: package.version for package in emulator},
        "userland": {package.name: package.version for package in userland},
        "wheels": taken,
    }
    (home / "contents.json").write_text(
        json.dumps(contents, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _unpack_wheels(home: Path, wheels: dict[str, str], say: Callable[[str], None]) -> list[str]:
    say("aarch64 wheels: " + ", ".join(f"{name} {number}" for name, number in wheels.items()))
    boxes = home / "boxes"
    wanted = [f"{name}=={number}" for name, number in wheels.items()]
    complaint = download(wanted, _GUEST_PYTHON, [f"{tag}_aarch64" for tag in _TAGS], boxes)
    if complaint is not None:
        raise DeviceError(
            f"the aarch64 wheels could not be had: {last_line(complaint)}",
            fix="check the network and that this Python has pip",
        )
    taken = sorted(boxes.glob("*.whl"))
    for box in taken:
        with zipfile.ZipFile(box) as archive:
            archive.extractall(home / "wheels")
    shutil.rmtree(boxes)
    return [box.name for box in taken]


def _compile(home: Path, counter: bytes) -> None:
    """Compile the counting plugin with the compiler that came with the emulator."""
    source = home / "counter.c"
    source.write_bytes(counter)
    ran = subprocess.run(
        [*_native(home, "tcc"), "-nostdlib", "-shared", "-o", str(home / "counter.so"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise DeviceError(
            f"the counting plugin does not compile: {ran.stderr.strip()[:300]}", fix="report this as a bug"
        )


def _native(home: Path, program: str) -> list[str]:
    """Return the command of one of `_EMULATOR`'s programs, with the C library that came with it."""
    host = home / "emulator"
    _, triple, loader = _HOSTS[platform.machine()]
    libraries = f"{host / 'lib' / triple}:{host / 'usr' / 'lib' / triple}"
    return [
        str(host / "lib" / triple / loader),
        "--library-path",
        libraries,
        str(host / "usr" / "bin" / program),
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None

"""OpenSSH for the tests: the installed one, else Debian's own packages, checked and unpacked into the tool's cache.

The unpacked programs run with the libraries that came with them; nothing is installed.
"""

from __future__ import annotations

import os
import platform
import pwd
import shlex
import shutil
import tempfile
from pathlib import Path

from exporter.system.files import cache_folder
from targets.devices.virtual_pi.debian import SUITE, Archive

PROGRAMS = {"sshd": "usr/sbin", "ssh": "usr/bin", "ssh-keygen": "usr/bin", "ssh-keyscan": "usr/bin"}
_HOSTS = {
    "x86_64": ("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "aarch64": ("arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}
_NEEDLESS = (
    *("adduser", "debconf", "debconf-2.0", "dpkg", "init-system-helpers", "libpam-modules", "libpam-runtime"),
    *(
        "lsb-base",
        "openssh-sftp-server",
        "passwd",
        "perl-base",
        "procps",
        "runit-helper",
        "sysvinit-utils",
        "ucf",
    ),
)


def installed() -> bool:
    """Return whether every program is on this machine."""
    return all(_which(name) for name in PROGRAMS)


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def installed_server() -> list[str]:
    """Return the command of the installed sshd."""
    return [str(_which("sshd"))]


def unpacked() -> Path:
    """Return the folder of programs from Debian's packages, fetched first if it is not there: 25 MB.

    Raises `DeviceError` without network, `KeyError` for a processor that is not known here.
    """
    architecture, triple, loader = _HOSTS[platform.machine()]
    home = cache_folder() / f"openssh-{SUITE}-{architecture}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "home"
            archive = Archive(architecture)
            packages = archive.closure(("openssh-server", "openssh-client"), _NEEDLESS)
            archive.unpack(packages, made / "root", lambda _: None)
            (made / "bin").mkdir()
            for name, folder in PROGRAMS.items():
                root = home / "root"
                libraries = f"{root}/lib/{triple}:{root}/usr/lib/{triple}"
                command = [
                    f"{root}/lib/{triple}/{loader}",
                    "--library-path",
                    libraries,
                    f"{root}/{folder}/{name}",
                ]
                command += ["-r"] if name == "sshd" else []  # it would start itself again without the loader
                (made / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
                (made / "bin" / name).chmod(0o755)
            try:
                made.rename(home)
            except OSError:
                if not home.is_dir():
                    raise
    return home / "bin"


def unpacked_server(scratch: Path) -> list[str]:
    """Return the command of the unpacked sshd; for root in a name space where its user without rights exists."""
    server = str(unpacked() / "sshd")
    try:
        pwd.getpwnam("sshd")
    except KeyError:
        if os.geteuid() == 0:
            users = scratch / "passwd"
            users.write_text(Path("/etc/passwd").read_text() + "sshd:x:22222:65534::/run/sshd:/bin/false\n")
            script = f'mount --bind {users} /etc/passwd && exec {server} "$@"'
            return ["unshare", "-m", "sh", "-c", script, "sh"]
    return [server]

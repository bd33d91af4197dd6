"""A device behind the system's OpenSSH: no agent on it, no password asked, no host key accepted unseen."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from exporter.errors import DeviceError, EdgeError, UsageError
from targets.devices.base import BOOTSTRAP, cleaned, last_line

_SSH_FAILED = 255
_NOT_FOUND = 127
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_PYTHON = re.compile(r"(~/|/)?[A-Za-z0-9_][A-Za-z0-9_./+-]{0,200}")
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class SshOptions:
    """What the address does not say: ssh's own configuration file, and the Python on the device."""

    config: Path | None = None
    python: str = "python3"


@dataclass(frozen=True, slots=True)
class SshDevice:
    """`ssh://[USER@]HOST[:PORT]`, by default as `~/.ssh/config` says."""

    where: str
    host: str
    user: str | None = None
    port: int | None = None
    options: SshOptions = field(default_factory=SshOptions)

    @classmethod
    def parse(cls, where: str, options: SshOptions) -> SshDevice:
        """Return the device of an address; `UsageError` if a part of it is not plainly a name."""
        shown = cleaned(where)
        try:
            parts = urlsplit(where)
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise UsageError(f"--on {shown!r}: {error}", fix="write ssh://USER@HOST:PORT") from error
        extra = parts.path not in {"", "/"} or parts.query or parts.fragment or parts.password
        if where != shown or parts.scheme != "ssh" or not host or extra:
            raise UsageError(
                f"--on {shown!r} is no place to measure",
                fix="use local, ssh://[USER@]HOST[:PORT], adb[:SERIAL] or emulated:CORE",
            )
        if not _HOST.fullmatch(host):
            raise UsageError(f"--on: {host!r} is no host name", fix="use letters, digits, dots and dashes")
        if parts.username is not None and not _USER.fullmatch(parts.username):
            raise UsageError(
                f"--on: {parts.username!r} is no user name", fix="use letters, digits, dots and dashes"
            )
        if port is not None and not 1 <= port <= _HIGHEST_PORT:
            raise UsageError(f"--on: there is no port {port}", fix="use 1 to 65535")
        if not _PYTHON.fullmatch(options.python):
            raise UsageError(
                f"--python {cleaned(options.python)!r} is no path of a program",
                fix="write a plain path, such as ~/venv/bin/python",
            )
        return cls(where, host, parts.username, port, options)

    def command(self) -> list[str]:
        """Return the ssh command; no part of it is ever shell text of the user's."""
        python = self.options.python
        home, name = ("~/", python[2:]) if python.startswith("~/") else ("", python)
        return [
            "ssh",
            *([] if self.options.config is None else ["-F", str(self.options.config)]),
            *("-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "ConnectTimeout=15"),
            *("-o", "ServerAliveInterval=5"),
            *("-o", "ServerAliveCountMax=4"),
            *("-o", "ClearAllForwardings=yes"),
            "-T",
            *([] if self.port is None else ["-p", str(self.port)]),
            *([] if self.user is None else ["-l", self.user]),
            "--",
            self.host,
            f"exec {home}{shlex.quote(name)} -c {shlex.quote(BOOTSTRAP)}",
        ]

    def explain(self, exit_code: int, complaint: str) -> EdgeError:
        """Return what ssh or the remote shell meant, and what to do."""
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in complaint:
            return DeviceError(
                f"{self.where} shows another host key than the one you know{self._fingerprints()}",
                fix=f"compare it on the device's own screen; if it was set up anew, ssh-keygen -R {self._known_as()}, "
                "then connect once with ssh",
            )
        if "Host key verification failed" in complaint or "host key is known" in complaint:
            return DeviceError(
                f"{self.where} is not in your known_hosts{self._fingerprints()}",
                fix=f"compare it on the device's own screen, then connect once with: {self._by_hand()}",
            )
        if "Permission denied" in complaint:
            return DeviceError(
                f"{self.where} did not accept your key, and no password is ever asked",
                fix=f"ssh-copy-id {self._destination()}, or load your key with ssh-add",
            )
        if exit_code == _SSH_FAILED:
            return DeviceError(
                f"{self.where} cannot be reached: {last_line(complaint)}",
                fix=f"try by hand: {self._by_hand()}",
            )
        if exit_code == _NOT_FOUND:
            return DeviceError(
                f"{self.where} has no {self.options.python}: {last_line(complaint)}",
                fix="on the device: sudo apt install python3-venv, and run again with --bootstrap, or name another "
                "Python there with --python",
            )
        return DeviceError(
            f"{self.where}: the probe ended with exit code {exit_code}: {last_line(complaint)}",
            fix="run the same command again; -v names the log",
        )

    def _destination(self) -> str:
        name = self.host if self.user is None else f"{self.user}@{self.host}"
        return name if self.port is None else f"-p {self.port} {name}"

    def _by_hand(self) -> str:
        config = "" if self.options.config is None else f"-F {shlex.quote(str(self.options.config))} "
        return f"ssh {config}{self._destination()}"

    def _known_as(self) -> str:
        return self.host if self.port in {None, 22} else f"'[{self.host}]:{self.port}'"

    def _fingerprints(self) -> str:
        """Return the keys that the host shows now; nothing is stored."""
        scan = [
            "ssh-keyscan",
            "-T",
            "5",
            *([] if self.port is None else ["-p", str(self.port)]),
            "--",
            self.host,
        ]
        try:
            keys = subprocess.run(scan, capture_output=True, timeout=15, check=False).stdout
            shown = subprocess.run(
                ["ssh-keygen", "-lf", "-"], input=keys, capture_output=True, timeout=15, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        lines = [
            line.split() for line in cleaned(shown.stdout.decode(errors="replace"), keep="\n").splitlines()
        ]
        found = [f"{line[-1].strip('()')} {line[1]}" for line in lines if len(line) > 2]
        return f": {', '.join(sorted(found))}" if found else ""

"""What a test knows of the sshd that it talks to, and what it does through it."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.benching import Wishes, bench_bundle
from exporter.bundle.manifest import write_manifest
from exporter.errors import EdgeError
from exporter.progress import Silence
from targets.devices import SshDevice, SshOptions, open_device


@dataclass
class Sshd:
    """A running sshd, the client configuration that knows it, and the environment its sessions get."""

    port: int
    config: Path
    known_hosts: Path
    client_key: Path
    host_key: Path
    folder: Path
    restart: Callable[..., None]

    @property
    def where(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"


def greets(port: int) -> bool:
    """Whether an sshd answers at `port`: a connection alone may be one of this process to itself."""
    with socket.socket() as knock:
        knock.settimeout(5)
        try:
            knock.connect(("127.0.0.1", port))
            return knock.recv(4) == b"SSH-"
        except OSError:
            return False


@contextlib.contextmanager
def serving(command: list[str], folder: Path) -> Iterator[Sshd]:
    """Run the sshd of `command` with keys of its own; `restart(**environment)` changes what its sessions see."""
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shutil.copy(folder / "client.pub", folder / "authorized")
    known = folder / "known_hosts"
    kind, key, *_ = (folder / "host.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    config = folder / "config"
    config.write_text(f"IdentityFile {folder}/client\nIdentitiesOnly yes\nUserKnownHostsFile {known}\n")
    running: list[subprocess.Popen[bytes]] = []
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)

    def stop() -> None:
        for server in running:
            server.terminate()
            server.wait()
        running.clear()

    def restart(**environment: str) -> None:
        stop()
        seen = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
        settings = " ".join(f'"{name}={value}"' for name, value in seen.items())
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv {settings}\n"
        )
        for _ in range(100):
            if not running or running[-1].poll() is not None:
                with (folder / "sshd.log").open("ab") as log:
                    arguments = ["-D", "-e", "-f", str(folder / "sshd_config")]
                    running.append(subprocess.Popen([*command, *arguments], stderr=log))
            if greets(port):
                return
            time.sleep(0.05)
        raise AssertionError((folder / "sshd.log").read_text())

    restart()
    try:
        yield Sshd(port, config, known, folder / "client", folder / "host", folder, restart)
    finally:
        stop()


QUICK = Wishes(threads=(1,), duration_s=0.05, files=("onnx:float32",), cool_s=0.05)


def device_of(sshd: Sshd, python: str = sys.executable, where: str | None = None) -> SshDevice:
    device = open_device(where or sshd.where, SshOptions(sshd.config, python))
    assert isinstance(device, SshDevice)
    return device


def measured(bundle: Path, sshd: Sshd, wishes: Wishes = QUICK, **options: Any) -> dict[str, Any]:
    return bench_bundle(bundle, device_of(sshd, **options), wishes, progress=Silence())


def refusal(bundle: Path, sshd: Sshd, wishes: Wishes = QUICK, **options: Any) -> EdgeError:
    with pytest.raises(EdgeError) as raised:
        measured(bundle, sshd, wishes, **options)
    return raised.value


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def wait_for(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def probes(folder: Path) -> list[int]:
    """Return the processes that run a probe with `folder` as their TMPDIR."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
            if (
                b"sys.stdin.buffer" in line
                and b"ssh" not in line.split(b"\0")[0].rpartition(b"/")[2]
                and line.count(b"\0") == 3
            ):
                environment = (entry / "environ").read_bytes().split(b"\0")
                if f"TMPDIR={folder}".encode() in environment:
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def vcgencmd(sshd: Sshd, answers: list[str]) -> None:
    """Put a `vcgencmd` on the device that gives `answers` in turn, the last one for ever."""
    told = sshd.folder / "told"
    told.write_text("\n".join(answers) + "\n")
    program(
        sshd.folder / "bin" / "vcgencmd",
        f'#!/bin/sh\n[ "$1" = get_throttled ] || exit 1\nhead -n 1 {told}\n'
        f'[ "$(wc -l < {told})" -gt 1 ] && sed -i 1d {told}\nexit 0\n',
    )
    sshd.restart(PATH=f"{sshd.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}")


def remade(bundle: Path) -> None:
    """Write the manifest of a bundle that was changed."""
    facts = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").unlink()
    left = {key: value for key, value in facts.items() if key not in {"files", "format", "manifest_sha256"}}
    write_manifest(bundle, left)

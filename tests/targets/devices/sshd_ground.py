"""What a test knows of the sshd that it talks to, and what it does through it."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.benching import Wishes, bench_bundle
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

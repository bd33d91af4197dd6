"""A bundle to measure, and a real sshd on loopback whose other side can be made sick."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import openssh
import pytest
from sshd_ground import Sshd, serving

from exporter.bundle.manifest import write_manifest
from exporter.errors import DeviceError


@pytest.fixture
def bundle(pi_bundle: Path) -> Path:
    """The tiny Raspberry Pi bundle with its manifest: one `.onnx`, one `.tflite`."""
    listed = [{"artifact": f"{kind}:float32", "file": f"tiny-float32.{kind}"} for kind in ("onnx", "tflite")]
    (pi_bundle / "evidence.json").write_text("[]\n")
    write_manifest(
        pi_bundle,
        {"name": "tiny", "version": "1.0.0", "target": "raspberry-pi", "artifacts": listed},
    )
    return pi_bundle


@pytest.fixture
def sshd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """OpenSSH's own server: the installed one, else (or with the parameter `unpacked`) Debian's, from the cache."""
    if openssh.installed() and getattr(request, "param", "installed") == "installed":
        command = openssh.installed_server()
    else:
        try:
            programs, command = openssh.unpacked(), openssh.unpacked_server(tmp_path)
        except (DeviceError, KeyError) as error:
            pytest.skip(f"no OpenSSH here, and none to be had: {error}")
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    with serving(command, folder) as server:
        yield server

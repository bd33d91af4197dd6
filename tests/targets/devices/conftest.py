"""A bundle to measure, and a real sshd on loopback whose other side can be made sick."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd_ground import Sshd

from exporter.manifest import write_manifest


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
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """OpenSSH's own server with a host key of its own; `restart(**environment)` changes what sessions see."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no sshd here: apt-get install openssh-server")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
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

    def restart(**environment: str) -> None:
        for server in running:
            server.terminate()
            server.wait()
        running.clear()
        seen = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
        settings = " ".join(f'"{name}={value}"' for name, value in seen.items())
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv {settings}\n"
        )
        log = (folder / "sshd.log").open("ab")
        running.append(subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log))
        log.close()
        for _ in range(100):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((folder / "sshd.log").read_text())

    restart()
    yield Sshd(port, config, known, folder / "client", folder / "host", folder, restart)
    for server in running:
        server.terminate()
        server.wait()

"""What a test knows of the sshd that it talks to."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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

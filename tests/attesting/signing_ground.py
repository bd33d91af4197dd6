"""What tests of signatures stand on: pairs of keys made by openssl, and one way to judge a refusal."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.errors import EdgeError

CONTENT = b'{"serial": 7}\n'
NAME = "index.json"


def openssl(*arguments: str | Path) -> None:
    """Run openssl, as the documentation tells people to."""
    subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )


class Pair:
    """A private key, readable by its owner alone, and its public half."""

    def __init__(self, folder: Path, curve: str = "prime256v1") -> None:
        folder.mkdir()
        self.private, self.public = folder / "key.pem", folder / "key.pub"
        openssl("ecparam", "-name", curve, "-genkey", "-noout", "-out", self.private)
        self.private.chmod(0o600)
        openssl("ec", "-in", self.private, "-pubout", "-out", self.public)


def refused(kind: type[EdgeError], action: Callable[[], object]) -> EdgeError:
    """Return the error of exactly `kind` that `action` raises."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    assert caught.value.fix
    return caught.value

"""A registry in a bucket (S3, GCS) or wherever else fsspec can write."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import BusyError
from exporter.registry.stores.asking import Network
from exporter.registry.stores.base import (
    CHUNK_BYTES,
    LARGEST_DOCUMENT,
    LOCK,
    missing,
    require_inside,
    too_large,
    wrong_size,
)

LEASE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class BucketStore:
    """A registry below `root` of `files`, one of fsspec's file systems."""

    files: Any
    root: str
    network: Network

    @property
    def url(self) -> str:
        """The URL, without credentials."""
        return self.network.url

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`; asks again when the connection breaks."""
        where = self._at(path)
        content: bytes | None = self.network.ask(path, lambda: _or_none(lambda: self.files.cat_file(where)))
        if content is not None and len(content) > limit:
            raise too_large(self.url, path, limit)
        return content

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield ranges."""
        where = self._at(path)
        for begin in range(start, size, CHUNK_BYTES):
            content = self._range(path, where, begin, min(begin + CHUNK_BYTES, size))
            if content is None:
                raise missing(self.url, path)
            if len(content) != min(CHUNK_BYTES, size - begin):
                raise wrong_size(self.url, path, begin + len(content), size)
            yield content

    def _range(self, path: str, where: str, begin: int, end: int) -> bytes | None:
        content: bytes | None = self.network.ask(
            path, lambda: _or_none(lambda: self.files.cat_file(where, start=begin, end=end))
        )
        return content

    def write(self, path: str, content: bytes) -> None:
        """Put one object; object stores show it whole or not at all."""
        where = self._at(path)
        self.network.ask(path, lambda: self.files.pipe_file(where, content))

    def lost(self, digests: Mapping[str, str]) -> list[str]:
        """Return which paths have no object; what the others hold is not fetched for it, `verify` does that."""
        return sorted(set(digests).difference(self.listing() or []))

    def upload(self, path: str, source: Path) -> None:
        """Put one object from a file, in parts where it is large."""
        where = self._at(path)
        self.network.ask(path, lambda: self.files.put_file(str(source), where))

    def delete(self, path: str) -> None:
        """Remove one object, if it is there."""
        where = self._at(path)
        self.network.ask(path, lambda: _or_none(lambda: self.files.rm_file(where)))

    def listing(self) -> list[str] | None:
        """Return every object below the root."""
        self.files.invalidate_cache()
        prefix = f"{self.root}/"
        found: list[str] = self.network.ask("", lambda: _or_none(lambda: self.files.find(self.root))) or []
        names = (name.removeprefix(prefix) for name in found)
        return sorted(name for name in names if name and name != LOCK)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lease: an object that only one can create, and that counts for nothing once its time is over."""
        where, held = self._at(LOCK), f"{socket.gethostname()} process {os.getpid()} until "
        mine = f"{held}{time.time() + LEASE_SECONDS:.0f}\n".encode()
        try:
            self._create(where, mine)
        except FileExistsError:
            holder = (self.read(LOCK) or b"").decode("utf-8", errors="replace").strip()
            if not _is_over(holder) and not _is_dead(holder):
                raise BusyError(
                    f"{self.url} is being published to by {holder or 'another process'}",
                    fix=f"wait for it to end; if it was killed, its lease ends after {LEASE_SECONDS / 60:.0f} minutes",
                ) from None
            self.delete(LOCK)
            self._create(where, mine)
        try:
            yield
        finally:
            self.delete(LOCK)

    def _create(self, where: str, content: bytes) -> None:
        try:
            self.network.ask(LOCK, lambda: self.files.pipe_file(where, content, mode="create"))
        except (NotImplementedError, TypeError):  # a store without conditional writes: look, then write
            if self.read(LOCK) is not None:
                raise FileExistsError(where) from None
            self.network.ask(LOCK, lambda: self.files.pipe_file(where, content))

    def _at(self, path: str) -> str:
        return f"{self.root}/{require_inside(path)}"


def _or_none(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except FileNotFoundError:
        return None


def _is_over(holder: str) -> bool:
    found = re.search(r" until ([0-9]{1,12})$", holder)
    return found is None or float(found[1]) < time.time()


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    found = re.fullmatch(r"(.+) process ([0-9]{1,9}) until [0-9]+", holder)
    if found is None or found[1] != socket.gethostname():
        return False
    try:
        os.kill(int(found[2]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False

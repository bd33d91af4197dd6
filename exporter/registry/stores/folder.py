"""A registry in a folder, written through `system.files`: whole or absent, synced, locked while its process lives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import InputError, IntegrityError
from exporter.registry.stores.base import (
    CHUNK_BYTES,
    LARGEST_DOCUMENT,
    LOCK,
    missing,
    require_inside,
    too_large,
    wrong_size,
)
from exporter.system.files import digest, disk_errors, hold_lock, is_unfinished, require_folder, write_bytes


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A registry in a folder of this machine."""

    root: Path

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`; a symbolic link on the way is refused, as content nobody published."""
        file = self._file(path)
        if not file.exists():
            return None
        _require_regular(file)
        if file.stat().st_size > limit:
            raise too_large(self.url, path, limit)
        return file.read_bytes()

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of `path` from `start` on."""
        file = self._file(path)
        if not file.exists():
            raise missing(self.url, path)
        _require_regular(file)
        if file.stat().st_size != size:
            raise wrong_size(self.url, path, file.stat().st_size, size)
        with file.open("rb") as stream:
            stream.seek(start)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def write(self, path: str, content: bytes) -> None:
        """Write beside, sync, rename; a link in its place is replaced, not followed."""
        file = self._file(path, is_written=True)
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)

    def lost(self, digests: Mapping[str, str]) -> list[str]:
        """Return which paths are no plain file with their digest: reading costs little here."""
        return [path for path, sha256 in sorted(digests.items()) if not self._is_intact(path, sha256)]

    def _is_intact(self, path: str, sha256: str) -> bool:
        try:
            file = self._file(path)
        except IntegrityError:
            return False
        return file.is_file() and digest(file) == sha256

    def upload(self, path: str, source: Path) -> None:
        """Write beside, sync, rename."""
        self.write(path, source.read_bytes())

    def delete(self, path: str) -> None:
        """Remove `path`, if it is there."""
        self._file(path, is_written=True).unlink(missing_ok=True)

    def listing(self) -> list[str] | None:
        """Return every file and every link, also one to a folder."""
        found = []
        for folder, folders, files in os.walk(self.root):
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            found += [(Path(folder) / name).relative_to(self.root).as_posix() for name in (*files, *links)]
        return sorted(name for name in found if name != LOCK)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lock that the system lets go of when this process ends, however it ends."""
        path = self.root / LOCK
        occupied = next((item for item in (self.root, *self.root.parents) if item.exists()), self.root)
        if not occupied.is_dir():
            raise InputError(f"{occupied} is a file, and a registry is a folder", fix="name another folder")
        require_folder(self.root, what="the registry")
        with hold_lock(path, what=f"the registry {self.root}"):
            self._clear_leftovers()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _clear_leftovers(self) -> None:
        """Remove the files that a killed publisher was writing beside their places."""
        for path in self.root.rglob(".*"):
            if is_unfinished(path):
                path.unlink()

    def _file(self, path: str, *, is_written: bool = False) -> Path:
        relative = require_inside(path)
        file = self.root / relative
        for parent in (file, *file.parents):
            if parent == self.root:
                break
            if is_written and parent == file:
                continue
            if parent.is_symlink():
                raise IntegrityError(
                    f"{parent} is a symbolic link", fix="publish again: nothing in a registry is a link"
                )
        return file


def _require_regular(file: Path) -> None:
    """Opening a pipe would wait for whoever writes into it."""
    if not file.is_file():
        raise IntegrityError(
            f"{file} is no regular file", fix="publish again: everything in a registry is a plain file"
        )

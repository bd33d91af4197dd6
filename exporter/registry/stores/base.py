"""What every store does, and what all of them say of files that are not as published."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from exporter.errors import IntegrityError

LARGEST_DOCUMENT = 64 << 20
"""Bytes of an index, a release or a view beyond which something else is being served."""
LOCK = ".edge-publish.lock"
CHUNK_BYTES = 4 << 20
CONNECT_SECONDS = 15.0


class Store(Protocol):
    """Where a registry can be read. Paths are relative, with `/`, and never leave the root."""

    @property
    def url(self) -> str:
        """The URL as a person would give it again, without a slash at its end and without credentials."""

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`, or `None` if there is none; `IntegrityError` if it is over `limit` bytes."""

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of `path` from `start` to `size`; `IntegrityError` if there are not that many."""

    def listing(self) -> list[str] | None:
        """Return the path of every file, sorted, or `None` where nobody can list them."""


@runtime_checkable
class WritableStore(Store, Protocol):
    """Where a registry can be published to."""

    def write(self, path: str, content: bytes) -> None:
        """Put `content` at `path`, in one step: a reader sees the old content or the new."""

    def lost(self, digests: Mapping[str, str]) -> list[str]:
        """Return which of the paths in `digests` are missing or, where that is cheap to tell, have other bytes."""

    def upload(self, path: str, source: Path) -> None:
        """Put the file `source` at `path`, in one step."""

    def delete(self, path: str) -> None:
        """Remove `path` if it is there."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other publishers out for as long as the block runs; `BusyError` names the one who is in."""


def require_inside(path: str) -> PurePosixPath:
    """Return `path` as a relative path; `IntegrityError` if it could lead out of a registry."""
    pure = PurePosixPath(path)
    if not path or "\\" in path or not path.isprintable() or pure.is_absolute() or ".." in pure.parts:
        raise IntegrityError(
            f"the registry names {path!r}, which is no path inside it", fix="do not use this registry"
        )
    return pure


def missing(url: str, path: str) -> IntegrityError:
    """Return the error of a file that is listed and not there."""
    return IntegrityError(
        f"{url}/{path} is missing, and the registry lists it",
        fix="publish that version again, or ask who keeps the registry",
    )


def wrong_size(url: str, path: str, actual: int, expected: int) -> IntegrityError:
    """Return the error of a file that has `actual` bytes (or more, if it is over) instead of `expected`."""
    return IntegrityError(
        f"{url}/{path} has {actual} bytes where the registry records {expected}",
        fix="try again; if it stays so, the file was damaged after it was published",
    )


def too_large(url: str, path: str, limit: int) -> IntegrityError:
    """Return the error of a document that is over `limit` bytes."""
    return IntegrityError(
        f"{url}/{path} has more than the {limit} bytes that such a document may have",
        fix="do not use this registry",
    )

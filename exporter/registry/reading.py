"""A registry opened and believed: its index checked by digest, signature, serial and time, its releases by the index."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from exporter.errors import InputError, IntegrityError
from exporter.registry.documents import (
    INDEX,
    Index,
    Release,
    ReleaseEntry,
    index_signature_path,
    now,
    read_index,
    read_release,
)
from exporter.registry.stores.base import Store, missing
from exporter.registry.trust import require_not_older
from exporter.system.files import cache_folder, write_bytes

READERS = 8
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Registry:
    """An index that was checked, and where it came from. `keys` are the public keys that signatures must fit, if any."""

    store: Store
    index: Index
    keys: tuple[Path, ...]

    def release(self, entry: ReleaseEntry) -> Release:
        """Return a release, checked against the index and, where keys are demanded, its signature."""
        where = f"{self.store.url}/{entry.path}"
        release = read_release(release_content(self.store, entry, self.keys), where)
        if entry.path != release.path:
            raise IntegrityError(
                f"{where} is the release of {release.title}",
                fix="the registry mixes releases: do not use it; ask who keeps it",
            )
        return release

    def releases(self) -> dict[str, Release]:
        """Return every release by the path of its document."""
        entries = [entry for _, _, _, entry in self.index.entries()]
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip((entry.path for entry in entries), pool.map(self.release, entries), strict=True))


def open_registry(store: Store, keys: Sequence[Path] = (), *, at: datetime | None = None) -> Registry:
    """Return the registry in `store`.

    Raises `InputError` (10) if there is none; `IntegrityError` (19) if its index is damaged, older than one seen before,
    past its time, or, where `keys` are given, not signed by one of them.
    """
    index, content = read_checked_index(store, keys)
    moment = at or now()
    if index.expires <= moment:
        raise IntegrityError(
            f"the index of {store.url} expired on {index.expires:%Y-%m-%d %H:%M} UTC (serial {index.serial})",
            fix=f"whoever keeps it renews it: edge-export publish --renew {store.url}",
        )
    require_not_older(store.url, index, content, is_signed=bool(keys))
    return Registry(store, index, tuple(keys))


def read_checked_index(store: Store, keys: Sequence[Path] = ()) -> tuple[Index, bytes]:
    """Return the index and its bytes, whole and, where `keys` are given, signed; its time is not looked at."""
    where = f"{store.url}/{INDEX}"
    content = store.read(INDEX)
    if content is None:
        raise InputError(
            f"{store.url} is no registry: it has no {INDEX}",
            fix="check the URL; a registry is made by the first: edge-export publish BUNDLE REGISTRY",
        )
    index = read_index(content, where)
    if keys:
        verify_index(store, index, content, keys)
    return index, content


def verify_index(store: Store, index: Index, content: bytes, keys: Sequence[Path]) -> None:
    """Raise `IntegrityError` unless one of `keys` signed the index whose bytes are `content`."""
    _verify(content, INDEX, _signature(store, index), keys, f"{store.url}/{INDEX}")


def _signature(store: Store, index: Index) -> bytes:
    if index.signed_by is None:
        raise IntegrityError(
            f"the index of {store.url} is not signed, and a key is demanded",
            fix="publish with --sign KEY.pem, or leave --key out if you trust the registry as it is",
        )
    for number in range(_TRIES):
        signature = store.read(index_signature_path(index.serial))
        if signature is not None:
            return signature
        time.sleep(0.1 * number)
    raise IntegrityError(
        f"{store.url}/{index_signature_path(index.serial)} is missing: the index says that it is signed",
        fix="publish again: edge-export publish --renew --sign KEY.pem",
    )


def release_content(store: Store, entry: ReleaseEntry, keys: Sequence[Path] = ()) -> bytes:
    """Return a release document that has the digest and, where `keys` are given, a signature of the index.

    It never changes, so that a copy in the cache serves as well; a damaged copy is fetched again.
    """
    kept = cache_folder() / "releases" / entry.sha256
    content = kept.read_bytes() if kept.is_file() else None
    if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
        content = store.read(entry.path)
        if content is None:
            raise missing(store.url, entry.path)
        actual = hashlib.sha256(content).hexdigest()
        if actual != entry.sha256:
            raise IntegrityError(
                f"{store.url}/{entry.path} has SHA-256 {actual[:16]}…, the index records {entry.sha256[:16]}…",
                fix="do not use it; publish that version again if it is yours",
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, content)
    if keys:
        verify_release(store, entry, content, keys)
    return content


def verify_release(store: Store, entry: ReleaseEntry, content: bytes, keys: Sequence[Path]) -> None:
    """Raise `IntegrityError` unless one of `keys` signed the release document whose bytes are `content`."""
    where = f"{store.url}/{entry.path}"
    if not entry.signatures:
        raise IntegrityError(
            f"{where} is not signed, and a key is demanded", fix="publish it with --sign KEY.pem"
        )
    refusals = []
    for item in entry.signatures:
        signature = store.read(item.path)
        if signature is None or hashlib.sha256(signature).hexdigest() != item.sha256:
            refusals.append(
                IntegrityError(f"{store.url}/{item.path} is missing or damaged", fix="publish again")
            )
            continue
        try:
            _verify(content, Path(entry.path).name, signature, keys, where)
        except IntegrityError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def _verify(content: bytes, name: str, signature: bytes, keys: Sequence[Path], where: str) -> None:
    from exporter.attesting.signatures import verify_document

    try:
        verify_document(content, name, signature, keys)
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error.cause}", fix=error.fix, details=error.details) from error

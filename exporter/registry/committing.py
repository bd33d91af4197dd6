"""The one write that makes everything before it visible: the next index, signed if asked, put in the place of the last."""

from __future__ import annotations

import contextlib
import secrets
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from exporter.attesting.signatures import public_key_pem, sign_document, signing_fingerprint
from exporter.errors import EdgeError, IntegrityError
from exporter.registry.documents import (
    INDEX,
    SERIAL_LIMIT,
    FileEntry,
    Index,
    ReleaseEntry,
    SignatureEntry,
    file_entry,
    index_signature_path,
    now,
    serialized,
)
from exporter.registry.packing import Prepared
from exporter.registry.reading import release_content
from exporter.registry.state import State
from exporter.registry.trust import require_not_older


def next_index(state: State, new: Sequence[Prepared], sign_with: Path | None, valid_days: int) -> Index:
    """Return the index with the new releases, everything signed by `sign_with` that was not; views are those of before."""
    before = state.index
    entries = {entry.path: entry for *_, entry in before.entries()} if before else {}
    key = None if sign_with is None else signing_fingerprint(sign_with)
    keys = dict(before.keys) if before else {}
    if sign_with is not None and key is not None and key not in keys:
        keys[key] = _show_key(state, sign_with, key)
    for item in new:
        release = item.release
        entry = file_entry(item.content)
        entries[release.path] = ReleaseEntry(
            path=release.path,
            sha256=entry.sha256,
            size=entry.size,
            bundle_bytes=sum(file.size for file in release.bundle.values()),
            lines=tuple(line for package in release.packages for line in package.lines),
        )
    releases: dict[str, dict[str, dict[str, ReleaseEntry]]] = defaultdict(lambda: defaultdict(dict))
    for path, entry in entries.items():
        signed = entry if sign_with is None or key is None else _signed(state, entry, sign_with, key)
        release = state.releases[path]
        releases[release.name][release.version][release.target] = signed
    moment = now()
    if before is not None and before.serial >= SERIAL_LIMIT:
        raise IntegrityError(
            f"the index of {state.store.url} has serial {before.serial}, the last there is",
            fix="publish to a new registry",
        )
    return Index(
        format=1,
        identity=before.identity if before else secrets.token_hex(16),
        serial=before.serial + 1 if before else 1,
        issued=moment,
        expires=moment + timedelta(days=valid_days),
        signed_by=key,
        releases={
            name: {version: dict(targets) for version, targets in versions.items()}
            for name, versions in releases.items()
        },
        views=before.views if before else {},
        keys=keys,
    )


def commit(state: State, index: Index, sign_with: Path | None) -> None:
    """Put the new index in the place of the old one: from here on everything that was written is there."""
    content = serialized(index)
    if sign_with is not None:
        # Its place is its serial's own, so that no reader ever finds one index with the signature of another.
        state.store.write(index_signature_path(index.serial), sign_document(content, INDEX, sign_with))
    state.write(INDEX, content)
    with contextlib.suppress(EdgeError, OSError):  # it is published, whether this host can remember it or not
        require_not_older(state.store.url, index, content, is_signed=False)
    if state.index is not None and state.index.signed_by is not None:
        state.store.delete(index_signature_path(state.index.serial))


def _signed(state: State, entry: ReleaseEntry, sign_with: Path, key: str) -> ReleaseEntry:
    """Return `entry` with a signature by `key`, written beside the document unless it is there."""
    if any(item.key == key for item in entry.signatures):
        return entry
    content = release_content(state.store, entry)
    signature = sign_document(content, Path(entry.path).name, sign_with)
    path = f"signatures/{entry.sha256}-{key[:16]}.sig"
    state.write(path, signature)
    made = file_entry(signature)
    item = SignatureEntry(path=path, key=key, sha256=made.sha256, size=made.size)
    return entry.model_copy(update={"signatures": (*entry.signatures, item)})


def _show_key(state: State, sign_with: Path, key: str) -> FileEntry:
    """Write the public half of a signing key into the registry, for whoever wants to see whether it is whole."""
    content = public_key_pem(sign_with)
    state.write(f"keys/{key}.pem", content)
    return file_entry(content)

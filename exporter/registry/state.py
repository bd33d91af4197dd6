"""What a registry holds already, read under its lock, and whether a release is among it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporter.errors import InputError, IntegrityError, UsageError
from exporter.registry.documents import INDEX, Index, Release, read_index
from exporter.registry.packing import Prepared
from exporter.registry.reading import Registry
from exporter.registry.stores.base import WritableStore
from exporter.registry.trust import require_not_older


@dataclass(slots=True)
class State:
    """The registry as it is, and what this publish has written so far."""

    store: WritableStore
    index: Index | None
    releases: dict[str, Release]
    uploaded_bytes: int = 0
    mended: list[str] = field(default_factory=list)

    def write(self, path: str, content: bytes) -> None:
        """Write `content` to `path` and count it."""
        self.store.write(path, content)
        self.uploaded_bytes += len(content)


def read_state(store: WritableStore, sign_with: Path | None, prepared: Sequence[Prepared]) -> State:
    """Return what the registry in `store` holds; its lock is held. Documents that it lost and `prepared` makes are put back.

    Raises `IntegrityError` (19) for an index that is damaged or older than one seen before, and where `sign_with` is
    missing: whoever publishes to a signed registry signs too.
    """
    content = store.read(INDEX)
    if content is None:
        return State(store, None, {})
    index = read_index(content, f"{store.url}/{INDEX}")
    # Who goes on from an index that somebody put back would fork the registry.
    require_not_older(store.url, index, content, is_signed=False)
    if index.signed_by is not None and sign_with is None:
        raise IntegrityError(
            f"{store.url} is signed (key {index.signed_by[:16]}…), and this publish is not",
            fix="add --sign KEY.pem: an unsigned index would be refused by everybody who checks",
        )
    mended = _restore_documents(store, index, prepared)
    return State(store, index, Registry(store, index, ()).releases(), mended=mended)


def require_own(store: WritableStore, *, is_first: bool) -> None:
    """Refuse, before anything is touched, a place that holds other things than a registry; `is_first` may make one."""
    if store.read(INDEX) is not None:
        return
    if not is_first:
        raise InputError(f"{store.url} is no registry yet", fix="publish a bundle to it")
    there = store.listing() or []
    if there and not any(path.startswith("blobs/") for path in there):
        raise UsageError(
            f"{store.url} holds other files ({there[0]}) and is no registry",
            fix="name a new folder or prefix",
        )


def is_published(state: State, item: Prepared) -> bool:
    """Return whether these bytes are published; `IntegrityError` if others are, under the same version.

    The provenance of a second build of the same bundle tells another time; the first one stays.
    """
    release = item.release
    there = state.releases.get(release.path)
    if there is None:
        return False
    if release.bundle == there.bundle:
        if release.model_copy(update={"documents": there.documents}) != there:
            item.notes.append(
                f"{release.title}: another version of this tool wrote its packages, and they stay"
            )
        return True
    raise IntegrityError(
        f"{release.title} is published in {state.store.url} with other bytes: {_difference(release, there)}",
        fix="raise model.version and build again: what is published never changes",
    )


def _restore_documents(store: WritableStore, index: Index, prepared: Sequence[Prepared]) -> list[str]:
    """Write again the release documents that the index lists, that are lost, and that `prepared` makes byte for byte."""
    entries = {entry.path: entry.sha256 for *_, entry in index.entries()}
    contents = {
        item.release.path: item.content
        for item in prepared
        if entries.get(item.release.path) == hashlib.sha256(item.content).hexdigest()
    }
    lost = store.lost({path: entries[path] for path in contents})
    for path in lost:
        store.write(path, contents[path])
    return lost


def _difference(mine: Release, theirs: Release) -> str:
    """Return the first file that two releases do not share, with both digests."""
    for path in sorted({*mine.bundle, *theirs.bundle}):
        here, there = (
            entries[path].sha256[:16] + "…" if path in entries else "absent"
            for entries in (mine.bundle, theirs.bundle)
        )
        if here != there:
            return f"{path} is {there} there and {here} here"
    raise AssertionError("unreachable: the bundles differ")

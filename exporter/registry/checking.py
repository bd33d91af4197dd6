"""Is what lies there what was published? Every byte of a registry, or of a pulled bundle, held against its documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from exporter.bundle.manifest import MANIFEST_NAME, check_manifest
from exporter.errors import IntegrityError
from exporter.progress import Advance, Progress
from exporter.registry.documents import (
    INDEX,
    FileEntry,
    Index,
    Release,
    blob_path,
    index_signature_path,
    now,
    read_release,
)
from exporter.registry.pulling import papers_of
from exporter.registry.reading import READERS, read_checked_index
from exporter.registry.stores.base import Store
from exporter.registry.trust import require_not_older
from exporter.registry.views import views_of
from exporter.system.files import digest

Tick = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found in order: how many files and bytes, and whose signature they bear."""

    subject: str
    kind: str
    files: int
    size_bytes: int
    signed_by: tuple[str, ...]
    notes: tuple[str, ...]


def check_registry(
    store: Store, keys: Sequence[Path] = (), *, at: datetime | None = None, progress: Progress
) -> Checked:
    """Hash every file of the registry in `store` against its index and releases, and write its listings again to compare.

    Raises `IntegrityError` (19) naming the first file that is missing, added, changed or a link, with both digests;
    for an expired or an older index, and, where `keys` are given, for whatever they did not sign.
    """
    index, content = read_checked_index(store, keys)
    releases = {entry.path: _release(store, entry.path, entry, index) for *_, entry in index.entries()}
    expected = _expected(index, releases)
    total = sum(entry.size for entry in expected.values())
    with progress.step("hashing", total or None) as advance:
        _hash_all(store, expected, advance)
    _require_views(store, index, releases)
    signers = _require_signatures(store, index, keys)
    notes = _require_nothing_else(store, index, expected)
    moment = at or now()
    if index.expires <= moment:
        raise IntegrityError(
            f"the index of {store.url} expired on {index.expires:%Y-%m-%d %H:%M} UTC",
            fix=f"renew it: edge-export publish --renew {store.url}",
        )
    require_not_older(store.url, index, content, is_signed=bool(keys))
    return Checked(store.url, "registry", len(expected) + 1, total + len(content), signers, notes)


def check_bundle(folder: Path, keys: Sequence[Path] = (), *, progress: Progress) -> Checked:
    """Hash every file of a bundle or a whole build against its manifest, and against the release it was pulled as.

    Raises `IntegrityError` (19) naming the file; also for `keys` that signed no release document beside the folder.
    """
    with progress.step("hashing"):
        files = check_manifest(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    papers = papers_of(folder)
    if not papers.is_file():
        if keys:
            raise IntegrityError(
                f"{folder} bears no signature: there is no {papers.name} beside it",
                fix="a signature comes with a pull: edge-export pull NAME@VERSION --from URL --key KEY.pem",
            )
        return Checked(str(folder), "bundle", files, size, (), ())
    content = papers.read_bytes()
    release = read_release(content, str(papers))
    _require_as_released(folder, release)
    signers = _signers_of(papers, content, release, keys) if keys else ()
    return Checked(str(folder), "pulled bundle", files, size, signers, ())


def _require_as_released(folder: Path, release: Release) -> None:
    """The manifest was checked, and vouches for all other files; what vouches for it is the release."""
    recorded, actual = release.bundle[MANIFEST_NAME].sha256, digest(folder / MANIFEST_NAME)
    if recorded != actual:
        raise IntegrityError(
            f"{folder / MANIFEST_NAME} has SHA-256 {actual[:16]}…, it was published with {recorded[:16]}…",
            fix="pull it again: this is another build than the one that was published, or measurements were added to it",
        )


def _signers_of(papers: Path, content: bytes, release: Release, keys: Sequence[Path]) -> tuple[str, ...]:
    from exporter.attesting.signatures import key_fingerprint, verify_document

    found = sorted(papers.parent.glob(f"{release.target}.release.*.sig"))
    refusal = IntegrityError(
        f"{papers} has no signature beside it", fix="pull it again from a signed registry"
    )
    for path in found:
        try:
            return (
                key_fingerprint(verify_document(content, f"{release.target}.json", path.read_bytes(), keys)),
            )
        except IntegrityError as error:
            refusal = IntegrityError(f"{path}: {error.cause}", fix=error.fix)
    raise refusal


# --- a registry ------------------------------------------------------------------------------------------


def _release(store: Store, path: str, entry: FileEntry, index: Index) -> Release:
    content = store.read(path)
    actual = "" if content is None else hashlib.sha256(content).hexdigest()
    if content is None or actual != entry.sha256:
        raise _wrong(store, path, actual, entry.sha256)
    release = read_release(content, f"{store.url}/{path}")
    if index.releases.get(release.name, {}).get(release.version, {}).get(release.target) != entry:
        raise IntegrityError(
            f"{store.url}/{path} is the release of {release.title}",
            fix="the registry mixes releases: publish again",
        )
    return release


def _expected(index: Index, releases: Mapping[str, Release]) -> dict[str, FileEntry]:
    """Return every file that index and releases name, by path, besides the index and its own signature."""
    expected: dict[str, FileEntry] = {}
    for *_, entry in index.entries():
        expected[entry.path] = entry
        expected |= {item.path: item for item in entry.signatures}
    for release in releases.values():
        expected |= {
            blob_path(entry.sha256): entry
            for entry in (*release.bundle.values(), *release.documents.values())
        }
        expected |= release.files
    expected |= index.views
    expected |= {f"keys/{key}.pem": entry for key, entry in index.keys.items()}
    return expected


def _hash_all(store: Store, expected: Mapping[str, FileEntry], advance: Advance) -> None:
    done = 0
    with ThreadPoolExecutor(READERS) as pool:
        tasks = [pool.submit(_hash, store, path, entry) for path, entry in sorted(expected.items())]
        try:
            for task in tasks:
                done += task.result()
                advance(done)
        finally:  # one that failed takes those along that have not begun
            pool.shutdown(cancel_futures=True)


def _hash(store: Store, path: str, entry: FileEntry) -> int:
    sums = hashlib.sha256()
    for chunk in store.chunks(path, 0, entry.size):
        sums.update(chunk)
    if sums.hexdigest() != entry.sha256:
        raise _wrong(store, path, sums.hexdigest(), entry.sha256)
    return entry.size


def _require_views(store: Store, index: Index, releases: Mapping[str, Release]) -> None:
    """The listings must say what the releases say: an index could vouch for others."""
    written = {
        path: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for path, content in views_of(releases.values()).items()
    }
    for path in sorted(set(written) | set(index.views)):
        if written.get(path) != index.views.get(path):
            raise IntegrityError(
                f"{store.url}/{path} does not list what is published",
                fix=f"write the listings again: edge-export publish --renew {store.url}",
            )


def _require_signatures(store: Store, index: Index, keys: Sequence[Path]) -> tuple[str, ...]:
    """Check every signature by `keys`, or else by the keys that the registry itself shows; return who signed."""
    if index.signed_by is None:
        return ()
    import tempfile

    from exporter.registry.reading import verify_index, verify_release

    with tempfile.TemporaryDirectory(prefix="edge-keys-") as folder:
        chosen = tuple(keys) or _shown_keys(store, index, Path(folder))
        verify_index(store, index, store.read(INDEX) or b"", chosen)
        for *_, entry in index.entries():
            verify_release(store, entry, store.read(entry.path) or b"", chosen)
    return (index.signed_by,)


def _shown_keys(store: Store, index: Index, folder: Path) -> tuple[Path, ...]:
    """Write the public keys that the registry shows into `folder`: they prove that it is whole, not whose it is."""
    paths = []
    for key in sorted(index.keys):
        path = folder / f"{key}.pem"
        path.write_bytes(store.read(f"keys/{key}.pem") or b"")
        paths.append(path)
    return tuple(paths)


def _require_nothing_else(store: Store, index: Index, expected: Iterable[str]) -> tuple[str, ...]:
    present = store.listing()
    if present is None:
        return ("a web server lists no files: what it serves besides the published ones was not looked for",)
    known = {INDEX, *expected}
    if index.signed_by is not None:
        known.add(index_signature_path(index.serial))
    for path in present:
        if path not in known:
            raise IntegrityError(
                f"{store.url}/{path} was not published: no release names it",
                fix="remove it; if a publish was interrupted, publish again instead",
            )
    return ()


def _wrong(store: Store, path: str, actual: str, expected: str) -> IntegrityError:
    found = f"has SHA-256 {actual[:16]}…" if actual else "is missing"
    return IntegrityError(
        f"{store.url}/{path} {found}, it was published as {expected[:16]}…",
        fix="do not use it; put the published file back, or publish the next version",
    )

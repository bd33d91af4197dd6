"""What a publish writes before anybody is told: releases, what published ones have lost, and the listings, in this order.

Files that no listing names come first, so that a publish that is killed here leaves nothing that a client would find.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exporter.errors import IntegrityError
from exporter.progress import Progress
from exporter.registry.documents import Index, Release, blob_path, file_entry, serialized
from exporter.registry.packing import Prepared
from exporter.registry.reading import READERS
from exporter.registry.state import State
from exporter.registry.views import views_of
from exporter.system.files import digest


def write_releases(state: State, new: Sequence[Prepared], progress: Progress) -> None:
    """Write blobs, packages and release documents; of each package, what a client asks for first comes last."""
    listed = _listed(state.releases.values())
    work: dict[str, tuple[Path, str]] = {}
    last: list[str] = []
    for item in new:
        digests = {path: entry.sha256 for path, entry in item.release.files.items()}
        for path, source in item.sources.items():
            sha256 = digests.get(path, Path(path).name)
            if listed.get(path, sha256) != sha256:
                raise IntegrityError(
                    f"{state.store.url}/{path} belongs to another release, with other bytes",
                    fix="give one of the two models another name",
                )
            if path not in listed:
                work[path] = (source, sha256)
        last += [package.files[-1] for package in item.release.packages if package.files]
        state.releases[item.release.path] = item.release
    # One blob before all else: by it a registry is known whose first publish was killed.
    first = sorted(
        (path for path in work if path not in last), key=lambda path: not path.startswith("blobs/")
    )
    with progress.step("uploading", len(work) + len(new)) as advance:
        for path in first[:1]:
            _upload(state, path, *work[path])
        _upload_all(state, first[1:], work, advance)
        for path in (path for path in last if path in work):
            _upload(state, path, *work[path])
        for item in new:
            state.write(item.release.path, item.content)
        advance(len(work) + len(new))


def mend(state: State, index: Index, present: Sequence[Prepared], progress: Progress) -> None:
    """Write again, byte for byte, what published releases have lost: of `present` every file, of all what makes itself."""
    written: dict[str, bytes] = {}
    for *_, entry in index.entries():
        written[entry.path] = serialized(state.releases[entry.path])
    written |= {
        path: content
        for path, content in views_of(state.releases.values()).items()
        if index.views.get(path) == file_entry(content)
    }
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in written.items()}
    sources: dict[str, Path] = {}
    for item in present:
        there = state.releases[item.release.path]
        for path, sha256 in _listed([there]).items():
            if path in item.sources and digest(item.sources[path]) == sha256:
                sources[path], digests[path] = item.sources[path], sha256
    with progress.step("looking for what is lost"):
        lost = state.store.lost(digests)
    state.mended += lost
    for path in lost:
        if path in sources:
            _upload(state, path, sources[path], digests[path])
        else:
            state.write(path, written[path])


def write_views(state: State, index: Index, progress: Progress) -> Index:
    """Write the listings that changed and return the index with the digests of all."""
    views = views_of(state.releases.values())
    entries = {path: file_entry(content) for path, content in sorted(views.items())}
    changed = [path for path, entry in entries.items() if index.views.get(path) != entry]
    with progress.step("writing listings", len(changed)) as advance:
        for number, path in enumerate(changed, start=1):
            state.write(path, views[path])
            advance(number)
    return index.model_copy(update={"views": entries})


def _upload_all(
    state: State, paths: Sequence[str], work: Mapping[str, tuple[Path, str]], advance: Callable[[int], None]
) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        for number, _ in enumerate(pool.map(lambda path: _upload(state, path, *work[path]), paths), start=1):
            advance(number)


def _upload(state: State, path: str, source: Path, sha256: str) -> None:
    # The bundle may change under our hands; what is uploaded must be what the release says.
    if digest(source) != sha256:
        raise IntegrityError(f"{source} changed while it was being published", fix="publish it again")
    state.store.upload(path, source)
    state.uploaded_bytes += source.stat().st_size


def _listed(releases: Iterable[Release]) -> dict[str, str]:
    """Return the digest of every file that the releases name, by path in the registry."""
    listed: dict[str, str] = {}
    for release in releases:
        listed |= {path: entry.sha256 for path, entry in release.files.items()}
        listed |= {blob_path(sha256): sha256 for sha256 in release.blobs()}
    return listed

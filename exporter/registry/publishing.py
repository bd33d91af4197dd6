"""Bundles → a registry: everything new is written first, the listings that clients look at after it, the index last.

What is published is never changed: the same bundle again is no change, other bytes under the same version are refused.
A publish that was killed left nothing that any client lists; the next one goes on over what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from exporter.bundle.manifest import MANIFEST_NAME, check_manifest
from exporter.errors import EdgeError, InputError, IntegrityError, UsageError
from exporter.progress import Progress
from exporter.registry.documents import (
    INDEX,
    SERIAL_LIMIT,
    TARGET_RULE,
    FileEntry,
    Index,
    PackageEntry,
    Release,
    ReleaseEntry,
    SignatureEntry,
    blob_path,
    file_entry,
    index_signature_path,
    now,
    read_index,
    release_path,
    serialized,
)
from exporter.registry.page import page_of
from exporter.registry.reading import READERS, Registry, release_content
from exporter.registry.stores.base import Store, WritableStore
from exporter.registry.trust import require_not_older
from exporter.registry.versions import require_name, require_version
from exporter.system.files import digest, scratch_folder, size_bytes, sorted_files
from targets.discovery import view_of
from targets.packaging.base import Bundle, Ecosystem, Package, PackRequest, Packs, Published, read_bundle

VALID_DAYS = 365
PROVENANCE = "provenance.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a publish did: the releases it added, those that were there already, and the index it left.

    `index` is `None` for a plan against a registry that is not there yet; `lines` are what teams paste for these releases.
    """

    index: Index | None
    added: tuple[str, ...]
    present: tuple[str, ...]
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    uploaded_bytes: int
    mended: tuple[str, ...] = ()


@dataclass(slots=True)
class _Prepared:
    """A release that is packed and not yet published; `sources` is where each file of it lies, by path in the registry."""

    release: Release
    content: bytes
    sources: dict[str, Path]
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _State:
    """The registry as it is, and what this publish has written so far."""

    store: WritableStore
    index: Index | None
    releases: dict[str, Release]
    uploaded_bytes: int = 0
    mended: list[str] = field(default_factory=list)


def publish(
    bundles: Sequence[Path],
    store: Store,
    *,
    sign_with: Path | None,
    valid_days: int = VALID_DAYS,
    only_plan: bool = False,
    progress: Progress,
) -> Outcome:
    """Publish `bundles` (folders of single targets); with none, renew the index, and sign what `sign_with` did not.

    Raises `UsageError` for a registry that is read-only or a renewal of none, `IntegrityError` (19) for a damaged
    bundle, for other bytes under a published version and for an unsigned publish into a signed registry, `BusyError`
    while somebody else publishes. Nothing is visible unless all of it is.
    """
    if not isinstance(store, WritableStore):
        raise UsageError(
            f"{store.url} can only be read", fix="publish to the folder or bucket that it serves"
        )
    _require_apart(bundles, store)
    if sign_with is not None:
        _fingerprint(sign_with)  # a key that cannot sign is refused before anything is written
    with scratch_folder("publish") as scratch:
        with progress.step("packing", len(bundles)) as advance:
            prepared = []
            for number, bundle in enumerate(bundles, start=1):
                prepared.append(_prepare(bundle, scratch / str(number)))
                advance(number)
        _require_different(prepared)
        _require_own(store, is_first=bool(prepared))
        with contextlib.nullcontext() if only_plan else store.lock():
            state = _read_state(store, sign_with, [] if only_plan else prepared)
            new = [item for item in prepared if not _is_published(state, item)]
            index = state.index
            if not only_plan and index is not None:
                _mend(state, index, [item for item in prepared if item not in new], progress)
            if not only_plan and (new or not prepared or sign_with is not None):
                _write_releases(state, new, progress)
                index = _next_index(state, new, sign_with, valid_days)
                index = _write_views(state, index, progress)
                _commit(state, index, sign_with)
    lines = tuple(line for item in prepared for package in item.release.packages for line in package.lines)
    present = [item for item in prepared if item not in new]
    return Outcome(
        index,
        _titles(new),
        _titles(present),
        lines,
        _notes(prepared),
        state.uploaded_bytes,
        tuple(state.mended),
    )


def require_whole(folder: Path) -> None:
    """Raise `IntegrityError` (19) if `folder` is a build of which something is missing, added or changed.

    Raises `InputError` (10) for a folder of several builds. Folders of bundles that no build wrote pass.
    """
    inside = sorted(item.parent for item in folder.glob(f"*/{MANIFEST_NAME}"))
    builds = [item for item in inside if any(item.glob(f"*/{MANIFEST_NAME}"))]
    if builds:
        raise InputError(f"{folder} holds builds, and is none itself", fix=f"name one of them: {builds[-1]}")
    if inside and not (folder / MANIFEST_NAME).exists() and (folder / PROVENANCE).exists():
        raise IntegrityError(
            f"the build {folder} is not as it was made: {folder / MANIFEST_NAME} is missing",
            fix="build it again, or name the bundles that are to go one by one",
        )
    if inside and (folder / MANIFEST_NAME).is_file():
        try:
            check_manifest(folder)
        except IntegrityError as error:
            raise IntegrityError(
                f"the build {folder} is not as it was made: {error.cause}",
                fix="build it again, or name the bundles that are to go one by one",
            ) from error


# --- packing ---------------------------------------------------------------------------------------------


def _prepare(folder: Path, scratch: Path) -> _Prepared:
    """Check a bundle, let its target pack it, and describe the release that it makes."""
    from targets.discovery import get_target

    check_manifest(folder)
    bundle = read_bundle(folder)
    require_name(bundle.name)
    require_version(bundle.version)
    if not re.fullmatch(TARGET_RULE, bundle.target):
        raise IntegrityError(
            f"{folder} is for {bundle.target!r}, which is no target's name", fix="build it again"
        )
    scratch.mkdir()
    notes = []
    try:
        target = get_target(bundle.target)
    except EdgeError as error:
        target = None
        notes.append(f"{bundle.target}: no packages, because {error.cause}")
    packages: tuple[Package, ...] = ()
    if isinstance(target, Packs):
        packages = target.pack(PackRequest(bundle, scratch))
    content = {path: folder / path for path in _files_of(folder)}
    documents = _documents(bundle, notes)
    order = list(dict.fromkeys(path for package in packages for path in package.files))
    release = Release(
        format=1,
        name=bundle.name,
        version=bundle.version,
        target=bundle.target,
        tool=bundle.tool,
        bundle={name: _entry(path) for name, path in sorted(content.items())},
        documents={name: _entry(path) for name, path in documents.items()},
        packages=tuple(
            PackageEntry(
                ecosystem=package.ecosystem,
                name=package.name,
                version=package.version,
                lines=package.lines,
                files=package.files,
                facts=dict(package.facts),
            )
            for package in packages
        ),
        files={path: _entry(scratch / path) for path in sorted(order)},
    )
    sources = {blob_path(digest(path)): path for path in (*content.values(), *documents.values())}
    sources |= {path: scratch / path for path in order}
    return _Prepared(release, serialized(release), sources, notes)


def _files_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted_files(folder)]


def _documents(bundle: Bundle, notes: list[str]) -> dict[str, Path]:
    """Return the build's provenance, where it lies beside the bundle and speaks of it."""
    path = bundle.folder.parent / PROVENANCE
    if not path.is_file():
        return {}
    from exporter.attesting.provenance import read_provenance

    try:
        read_provenance(path).require_about(bundle.folder)
    except IntegrityError as error:
        notes.append(f"published without provenance: {error.cause}")
        return {}
    return {PROVENANCE: path}


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=digest(path), size=size_bytes(path))


def _require_apart(bundles: Sequence[Path], store: Store) -> None:
    """A registry inside a bundle would be a part of what it publishes."""
    root = Path(store.url)
    for bundle in bundles:
        if "://" not in store.url and root.resolve().is_relative_to(bundle.resolve()):
            raise UsageError(
                f"the registry {root} lies inside the bundle {bundle}", fix="name a folder outside of it"
            )


def _require_own(store: WritableStore, *, is_first: bool) -> None:
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


def _require_different(prepared: Sequence[_Prepared]) -> None:
    titles = _titles(prepared)
    for title in titles:
        if titles.count(title) > 1:
            raise UsageError(f"{title} is given twice", fix="name each bundle once")


def _title(release: Release) -> str:
    return f"{release.name} {release.version} for {release.target}"


def _titles(prepared: Iterable[_Prepared]) -> tuple[str, ...]:
    return tuple(_title(item.release) for item in prepared)


def _notes(prepared: Iterable[_Prepared]) -> tuple[str, ...]:
    return tuple(note for item in prepared for note in item.notes)


# --- what is there ---------------------------------------------------------------------------------------


def _read_state(store: WritableStore, sign_with: Path | None, prepared: Sequence[_Prepared]) -> _State:
    """Read the registry under its lock; whoever publishes to a signed one signs too."""
    content = store.read(INDEX)
    if content is None:
        return _State(store, None, {})
    index = read_index(content, f"{store.url}/{INDEX}")
    # Who goes on from an index that somebody put back would fork the registry.
    require_not_older(store.url, index, content, is_signed=False)
    if index.signed_by is not None and sign_with is None:
        raise IntegrityError(
            f"{store.url} is signed (key {index.signed_by[:16]}…), and this publish is not",
            fix="add --sign KEY.pem: an unsigned index would be refused by everybody who checks",
        )
    mended = _restore_documents(store, index, prepared)
    return _State(store, index, Registry(store, index, ()).releases(), mended=mended)


def _restore_documents(store: WritableStore, index: Index, prepared: Sequence[_Prepared]) -> list[str]:
    """Write again the release documents that the index lists, that are lost, and that `prepared` makes byte for byte."""
    entries = {entry.path: entry.sha256 for *_, entry in index.entries()}
    contents = {
        path: item.content
        for item in prepared
        for path in (release_path(item.release.name, item.release.version, item.release.target),)
        if entries.get(path) == hashlib.sha256(item.content).hexdigest()
    }
    lost = store.lost({path: entries[path] for path in contents})
    for path in lost:
        store.write(path, contents[path])
    return lost


def _is_published(state: _State, item: _Prepared) -> bool:
    """Return whether these bytes are published; `IntegrityError` if others are, under the same version.

    The provenance of a second build of the same bundle tells another time; the first one stays.
    """
    release = item.release
    there = state.releases.get(release_path(release.name, release.version, release.target))
    if there is None:
        return False
    if release.bundle == there.bundle:
        if release.model_copy(update={"documents": there.documents}) != there:
            item.notes.append(
                f"{_title(release)}: another version of this tool wrote its packages, and they stay"
            )
        return True
    raise IntegrityError(
        f"{_title(release)} is published in {state.store.url} with other bytes: {_difference(release, there)}",
        fix="raise model.version and build again: what is published never changes",
    )


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


# --- writing ---------------------------------------------------------------------------------------------


def _write_releases(state: _State, new: Sequence[_Prepared], progress: Progress) -> None:
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
        state.releases[release_path(item.release.name, item.release.version, item.release.target)] = (
            item.release
        )
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
            path = release_path(item.release.name, item.release.version, item.release.target)
            state.store.write(path, item.content)
            state.uploaded_bytes += len(item.content)
        advance(len(work) + len(new))


def _mend(state: _State, index: Index, present: Sequence[_Prepared], progress: Progress) -> None:
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
        release = item.release
        there = state.releases[release_path(release.name, release.version, release.target)]
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
            state.store.write(path, written[path])
            state.uploaded_bytes += len(written[path])


def _upload_all(
    state: _State, paths: Sequence[str], work: Mapping[str, tuple[Path, str]], advance: Callable[[int], None]
) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        for number, _ in enumerate(pool.map(lambda path: _upload(state, path, *work[path]), paths), start=1):
            advance(number)


def _upload(state: _State, path: str, source: Path, sha256: str) -> None:
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


def _next_index(state: _State, new: Sequence[_Prepared], sign_with: Path | None, valid_days: int) -> Index:
    """Return the index with the new releases, everything signed by `sign_with` that was not; views are those of before."""
    before = state.index
    entries = {entry.path: entry for *_, entry in before.entries()} if before else {}
    key = None if sign_with is None else _fingerprint(sign_with)
    keys = dict(before.keys) if before else {}
    if sign_with is not None and key is not None and key not in keys:
        keys[key] = _show_key(state, sign_with, key)
    for item in new:
        release = item.release
        path = release_path(release.name, release.version, release.target)
        entry = file_entry(item.content)
        entries[path] = ReleaseEntry(
            path=path,
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


def _signed(state: _State, entry: ReleaseEntry, sign_with: Path, key: str) -> ReleaseEntry:
    """Return `entry` with a signature by `key`, written beside the document unless it is there."""
    from exporter.attesting.signatures import sign_document

    if any(item.key == key for item in entry.signatures):
        return entry
    content = release_content(state.store, entry)
    signature = sign_document(content, Path(entry.path).name, sign_with)
    path = f"signatures/{entry.sha256}-{key[:16]}.sig"
    state.store.write(path, signature)
    state.uploaded_bytes += len(signature)
    made = file_entry(signature)
    item = SignatureEntry(path=path, key=key, sha256=made.sha256, size=made.size)
    return entry.model_copy(update={"signatures": (*entry.signatures, item)})


def _show_key(state: _State, sign_with: Path, key: str) -> FileEntry:
    """Write the public half of a signing key into the registry, for whoever wants to see whether it is whole."""
    from exporter.attesting.signatures import public_key_pem

    content = public_key_pem(sign_with)
    state.store.write(f"keys/{key}.pem", content)
    state.uploaded_bytes += len(content)
    return file_entry(content)


def _fingerprint(key: Path) -> str:
    from exporter.attesting.signatures import signing_fingerprint

    return signing_fingerprint(key)


def views_of(releases: Iterable[Release]) -> dict[str, bytes]:
    """Return every listing of a registry that holds `releases`: what Gradle, git, pip and people look at."""
    by_ecosystem: dict[Ecosystem, list[Published]] = defaultdict(list)
    listed = list(releases)
    views = page_of(listed)
    for release in listed:
        for published in release.published():
            by_ecosystem[published.package.ecosystem].append(published)
    for ecosystem, published_packages in sorted(by_ecosystem.items()):
        view = view_of(ecosystem)
        if view is not None:
            try:
                views |= view(published_packages)
            except KeyError as error:
                raise IntegrityError(
                    f"a package for {ecosystem} is described without {error}",
                    fix="do not use this registry; ask who keeps it",
                ) from error
    return views


def _write_views(state: _State, index: Index, progress: Progress) -> Index:
    """Write the listings that changed and return the index with the digests of all."""
    views = views_of(state.releases.values())
    entries = {path: file_entry(content) for path, content in sorted(views.items())}
    changed = [path for path, entry in entries.items() if index.views.get(path) != entry]
    with progress.step("writing listings", len(changed)) as advance:
        for number, path in enumerate(changed, start=1):
            state.store.write(path, views[path])
            state.uploaded_bytes += len(views[path])
            advance(number)
    return index.model_copy(update={"views": entries})


def _commit(state: _State, index: Index, sign_with: Path | None) -> None:
    """Put the new index in the place of the old one: from here on everything that was written is there."""
    content = serialized(index)
    if sign_with is not None:
        from exporter.attesting.signatures import sign_document

        # Its place is its serial's own, so that no reader ever finds one index with the signature of another.
        state.store.write(index_signature_path(index.serial), sign_document(content, INDEX, sign_with))
    state.store.write(INDEX, content)
    state.uploaded_bytes += len(content)
    with contextlib.suppress(EdgeError, OSError):  # it is published, whether this host can remember it or not
        require_not_older(state.store.url, index, content, is_signed=False)
    if state.index is not None and state.index.signed_by is not None:
        state.store.delete(index_signature_path(state.index.serial))

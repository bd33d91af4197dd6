"""A release → a bundle in a folder: every byte re-hashed, what was fetched before is not fetched again.

Files come into a cache by their digest first, so that a pull that broke off goes on where it stopped, and two versions
share what they have in common. The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from exporter.bundle.manifest import check_manifest, read_manifest
from exporter.errors import InputError, IntegrityError, ResourceError, UsageError
from exporter.progress import Progress
from exporter.registry.documents import FileEntry, Release, ReleaseEntry, blob_path
from exporter.registry.reading import READERS, Registry, release_content
from exporter.registry.stores.base import Store, require_inside
from exporter.registry.versions import VersionRange, choose, newest_first
from exporter.system.files import (
    appear_at_once,
    cache_folder,
    digest,
    disk_errors,
    hold_lock,
    require_folder,
    sorted_files,
    wait_for_lock,
    write_bytes,
)

_SPARE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """The release that a request meant."""

    name: str
    version: str
    target: str
    entry: ReleaseEntry


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought: the bundle's folder, how many files and bytes it has, how many bytes came over the network."""

    path: Path
    release: Release
    files: int
    size_bytes: int
    fetched_bytes: int
    signed_by: tuple[str, ...]


def choose_release(registry: Registry, name: str, wanted: VersionRange, target: str | None) -> Chosen:
    """Return the newest release of `name` that `wanted` admits, for `target` (needed where there are several).

    Raises `InputError` naming what there is instead.
    """
    import difflib

    releases = registry.index.releases
    where = registry.store.url
    if name not in releases:
        near = difflib.get_close_matches(name, releases, n=3)
        fix = f"did you mean {' or '.join(near)}?" if near else f"see what there is: edge-export list {where}"
        raise InputError(f"{where} has no model called {name!r}", fix=fix)
    versions = releases[name]
    if target is not None:
        versions = {version: targets for version, targets in versions.items() if target in targets}
        if not versions:
            there = sorted({item for targets in releases[name].values() for item in targets})
            raise InputError(
                f"{name} is not published for {target!r}", fix=f"use --target {' or '.join(there)}"
            )
    version = choose(versions, wanted)
    if version is None:
        shown = ", ".join(newest_first(versions)[:8])
        raise InputError(
            f"{where} has no version of {name} that {wanted.text!r} admits", fix=f"there is {shown}"
        )
    if target is None:
        if len(versions[version]) > 1:
            raise InputError(
                f"{name} {version} is published for {', '.join(sorted(versions[version]))}",
                fix=f"say which: --target {min(versions[version])}",
            )
        target = next(iter(versions[version]))
    return Chosen(name, version, target, versions[version][target])


def pull(registry: Registry, chosen: Chosen, out: Path, *, progress: Progress) -> Pulled:
    """Bring a release into `out/NAME/VERSION/TARGET/`, its document and its provenance beside that folder.

    Raises `IntegrityError` (19) naming a file whose bytes are not those that were published, with both digests,
    `ResourceError` when the disk is full (what was fetched stays in the cache), `TimeLimitError` for a server that hangs.
    """
    _require_apart(registry, out)
    require_folder(out, what="--out")
    release = registry.release(chosen.entry)
    destination = out / chosen.name / chosen.version / chosen.target
    _require_own(destination, release)
    wanted = release.blobs()
    cache = cache_folder() / "blobs"
    fetched = _fetch_all(registry.store, wanted, cache, progress)
    holder = destination.parent / f".{chosen.target}.lock"
    with hold_lock(holder, what=str(destination)), progress.step("writing the bundle"):
        try:
            with appear_at_once(destination) as staging:
                _assemble(release.bundle, cache, staging)
                _require_described(staging, release, f"{registry.store.url}/{chosen.entry.path}")
                # Before the folder appears: a bundle without its papers could not be verified.
                _write_papers(registry, chosen, release, cache, destination)
        finally:
            holder.unlink(missing_ok=True)
    return Pulled(
        destination,
        release,
        len(release.bundle),
        sum(item.size for item in release.bundle.values()),
        fetched,
        tuple(item.key for item in chosen.entry.signatures) if registry.keys else (),
    )


def papers_of(bundle: Path) -> Path:
    """Return where a pull puts the release document of `bundle`, beside its folder."""
    return bundle.with_name(f"{bundle.name}.release.json")


def _require_apart(registry: Registry, out: Path) -> None:
    """What is pulled into a registry would be something in it that nobody published."""
    url = registry.store.url
    if "://" not in url and out.resolve().is_relative_to(Path(url).resolve()):
        raise UsageError(f"--out {out} lies inside the registry {url}", fix="name a folder outside of it")


def _require_own(destination: Path, release: Release) -> None:
    """What is no part of the release is somebody's work, such as what `bench` measured: it is not replaced."""
    if not destination.is_dir() or destination.is_symlink():
        return
    for path in sorted_files(destination):
        name = path.relative_to(destination).as_posix()
        if name not in release.bundle:
            raise InputError(
                f"{destination} is there, with {name}, which is no part of this release",
                fix="move the folder away if you want to keep that, or name another --out",
            )


def _require_described(staging: Path, release: Release, where: str) -> None:
    """Raise `IntegrityError` unless the bundle in `staging` is whole by its own manifest, and says what the release says."""
    try:
        check_manifest(staging)
        manifest = read_manifest(staging)
    except (InputError, IntegrityError) as error:
        cause = error.cause.replace(f"{staging}/", "").replace(str(staging), "it")
        raise IntegrityError(
            f"{where} holds no sound bundle: {cause}", fix="do not use this release; ask who published it"
        ) from error
    says = tuple(manifest.get(key) for key in ("name", "version", "target"))
    if says != (release.name, release.version, release.target):
        raise IntegrityError(
            f"{where} holds the bundle of {' '.join(map(str, says))}",
            fix="do not use this release; ask who published it",
        )


def _fetch_all(store: Store, wanted: Mapping[str, int], cache: Path, progress: Progress) -> int:
    """Bring every blob into the cache, in parallel; return how many bytes came from the store."""
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    missing = {sha256: size for sha256, size in wanted.items() if not _is_whole(cache, sha256, size)}
    free = shutil.disk_usage(cache).free
    needed = sum(missing.values()) + _SPARE_BYTES
    if needed > free:
        raise ResourceError(
            f"{needed / 1e6:.0f} MB are needed in {cache} and {free / 1e6:.0f} MB are free",
            fix="free some space, or set XDG_CACHE_HOME to a larger disk",
        )
    fetched = 0
    with (
        progress.step("fetching", sum(missing.values()) or None) as advance,
        ThreadPoolExecutor(READERS) as pool,
    ):
        tasks = [pool.submit(_fetch, store, sha256, size, cache) for sha256, size in sorted(missing.items())]
        try:
            for task in tasks:
                fetched += task.result()
                advance(fetched)
        finally:  # one that failed takes those along that have not begun
            pool.shutdown(cancel_futures=True)
    return fetched


def _is_whole(cache: Path, sha256: str, size: int) -> bool:
    """Return whether the cache holds that content; a damaged copy is removed."""
    path = _kept(cache, sha256)
    if not path.is_file():
        return False
    if path.stat().st_size == size and digest(path) == sha256:
        return True
    path.unlink()
    return False


def _kept(cache: Path, sha256: str) -> Path:
    return cache / sha256[:2] / sha256


def _fetch(store: Store, sha256: str, size: int, cache: Path) -> int:
    """Bring one blob into the cache, going on after what an earlier pull left of it; return the bytes that came."""
    path = _kept(cache, sha256)
    part = path.with_name(f"{sha256}.part")
    # One lock for all blobs that start alike: of several pulls at once, one fetches and the others find it there.
    with disk_errors(part), wait_for_lock(path.with_name("lock")):
        if _is_whole(cache, sha256, size):
            return 0
        came = _continue(store, sha256, size, part)
        part.replace(path)
    return came


def _continue(store: Store, sha256: str, size: int, part: Path) -> int:
    sums = hashlib.sha256()
    at = 0
    if part.is_file() and part.stat().st_size <= size:
        with part.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                sums.update(chunk)
                at += len(chunk)
    came = 0
    with part.open("r+b" if at else "wb") as stream:
        stream.seek(at)
        for chunk in store.chunks(blob_path(sha256), at, size):
            sums.update(chunk)
            stream.write(chunk)
            came += len(chunk)
    # Not synced: what a crash leaves of it is found out by its digest before it is used.
    if sums.hexdigest() != sha256:
        part.unlink()
        if came < size:  # what an earlier pull left may be at fault: once more from the start
            return _continue(store, sha256, size, part)
        raise IntegrityError(
            f"{store.url}/{blob_path(sha256)} has SHA-256 {sums.hexdigest()[:16]}…, it was published as {sha256[:16]}…",
            fix="try again; if it stays so, the file was damaged after it was published: publish it again",
        )
    return came


def _assemble(bundle: Mapping[str, FileEntry], cache: Path, staging: Path) -> None:
    for name, entry in sorted(bundle.items()):
        path = staging / require_inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_kept(cache, entry.sha256), path)
        path.chmod(0o644)


def _write_papers(
    registry: Registry, chosen: Chosen, release: Release, cache: Path, destination: Path
) -> None:
    """Put the release document beside the bundle, and the signatures and documents that belong to it."""
    write_bytes(papers_of(destination), release_content(registry.store, chosen.entry))
    for item in chosen.entry.signatures:
        signature = registry.store.read(item.path)
        if signature is not None and hashlib.sha256(signature).hexdigest() == item.sha256:
            write_bytes(destination.with_name(f"{chosen.target}.release.{item.key[:16]}.sig"), signature)
    for name, entry in release.documents.items():
        write_bytes(destination.with_name(f"{chosen.target}.{name}"), _kept(cache, entry.sha256).read_bytes())

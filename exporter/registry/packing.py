"""A bundle → the release that it makes: checked, packed by its target, every file with its digest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from exporter.bundle.manifest import MANIFEST_NAME, check_manifest
from exporter.errors import EdgeError, InputError, IntegrityError
from exporter.registry.documents import TARGET_RULE, FileEntry, PackageEntry, Release, blob_path, serialized
from exporter.registry.versions import require_name, require_version
from exporter.system.files import digest, size_bytes, sorted_files
from targets.packaging.base import Bundle, Package, PackRequest, Packs, read_bundle

PROVENANCE = "provenance.json"


@dataclass(slots=True)
class Prepared:
    """A release that is packed and not yet published; `sources` is where each file of it lies, by path in the registry."""

    release: Release
    content: bytes
    sources: dict[str, Path]
    notes: list[str] = field(default_factory=list)


def prepare(folder: Path, scratch: Path) -> Prepared:
    """Return the release that the bundle in `folder` makes; its target writes the packages into `scratch`, a new folder.

    Raises `IntegrityError` (19) for a bundle that is not as it was made, `UsageError` for a name or a version that no
    registry takes, and what the target raises that cannot pack it. A target that is not installed packs nothing: a note.
    """
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
    return Prepared(release, serialized(release), sources, notes)


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

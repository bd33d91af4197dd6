"""The manifest: a SHA-256 for every file of a bundle and for itself, written last and checked first.

Its own digest finds a damaged manifest, not a forged one: that takes a signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from exporter.errors import InputError, IntegrityError
from exporter.system.files import canonical_json, digest, sorted_files, write_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1
_OWN_DIGEST = "manifest_sha256"


def write_manifest(folder: Path, facts: Mapping[str, Any], leaving: Collection[Path] = ()) -> None:
    """Write `folder/manifest.json`: `facts` (name, version, …), every file's size and digest, and its own.

    Its own is the SHA-256 of the canonical JSON of everything else in it. Files in `leaving` are about to be removed
    and are not listed.
    """
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digest(path), "size": path.stat().st_size}
        for path in sorted_files(folder)
        if path != folder / MANIFEST_NAME and path not in leaving
    }
    body = {"format": MANIFEST_FORMAT, **facts, "files": files}
    write_json(folder / MANIFEST_NAME, {**body, _OWN_DIGEST: _digest_of(body)})


def rewrite_manifest(folder: Path, leaving: Collection[Path] = ()) -> None:
    """Write the manifest of `folder` anew after its files changed, without those in `leaving`; the facts in it stay.

    Raises what `read_manifest` raises.
    """
    written = {"format", "files", _OWN_DIGEST}
    facts = {key: value for key, value in read_manifest(folder).items() if key not in written}
    write_manifest(folder, facts, leaving)


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of `folder`; `InputError` if it is no bundle, `IntegrityError` if it is damaged."""
    path = folder / MANIFEST_NAME
    if path.is_symlink():
        raise IntegrityError(f"{path} is a symbolic link", fix="build or pull the bundle again")
    if not path.is_file():
        raise InputError(
            f"{folder} is no bundle: it has no {MANIFEST_NAME}",
            fix="name a folder that edge-export build wrote",
        )
    try:
        content = path.read_bytes()
        manifest: dict[str, Any] = json.loads(content.decode("utf-8"))
        kind, recorded = manifest["format"], manifest[_OWN_DIGEST]
        body = {key: value for key, value in manifest.items() if key != _OWN_DIGEST}
        whole = recorded == _digest_of(body) and content == canonical_json(manifest)
        whole &= all(isinstance(entry["sha256"], str) for entry in manifest["files"].values())
        whole &= all(isinstance(entry["size"], int) for entry in manifest["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    if kind != MANIFEST_FORMAT:
        raise IntegrityError(
            f"{path} has format {kind!r}; this tool reads {MANIFEST_FORMAT}", fix="update edge-exporter"
        )
    return manifest


def listed_bytes(manifest: Mapping[str, Any], path: str) -> int:
    """Return the bytes that a manifest lists for a file, or for all files of a folder such as an `.mlpackage`."""
    files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    return sum(entry["size"] for name, entry in files.items() if name == path or name.startswith(f"{path}/"))


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged: it is not what was written", fix="build or pull the bundle again"
    )


def check_manifest(folder: Path) -> int:
    """Re-hash everything the manifest lists and return how many files that were.

    Raises `IntegrityError` (19) naming a file that is missing, added, changed or replaced by a link.
    """
    recorded = read_manifest(folder)["files"]
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    present.discard(MANIFEST_NAME)
    for name in sorted(set(recorded) - present):
        raise IntegrityError(f"{folder / name} is missing", fix="build or pull the bundle again")
    for name in sorted(present - set(recorded)):
        raise IntegrityError(
            f"{folder / name} is not in the manifest", fix="remove it, or build the bundle again"
        )
    for name in sorted(recorded):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            kind = "a symbolic link" if path.is_symlink() else "no plain file"
            raise IntegrityError(f"{path} is {kind}", fix="build or pull the bundle again")
        actual = digest(path)
        if actual != recorded[name]["sha256"]:
            raise IntegrityError(
                f"{path} has SHA-256 {actual[:16]}…, the manifest records {recorded[name]['sha256'][:16]}…",
                fix="build or pull the bundle again; do not ship this file",
            )
    return len(recorded)

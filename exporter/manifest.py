"""The manifest: a SHA-256 for every file of a bundle, written last and checked first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import InputError, IntegrityError
from exporter.files import digest, sorted_files, write_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `folder/manifest.json`: `facts` (name, version, …) and every file's size and digest."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digest(path), "size": path.stat().st_size}
        for path in sorted_files(folder)
        if path != folder / MANIFEST_NAME
    }
    write_json(folder / MANIFEST_NAME, {"format": MANIFEST_FORMAT, **facts, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of `folder`; `InputError` if it is no bundle, `IntegrityError` if it is damaged."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} is no bundle: it has no {MANIFEST_NAME}",
            fix="name a folder that edge-export build wrote",
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == MANIFEST_FORMAT and isinstance(manifest["files"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged", fix="build or pull the bundle again") from error
    if not known:
        raise IntegrityError(
            f"{path} has format {manifest['format']!r}; this tool reads {MANIFEST_FORMAT}",
            fix="update edge-exporter",
        )
    return manifest


def check_manifest(folder: Path) -> int:
    """Re-hash everything the manifest lists and return how many files that were.

    Raises `IntegrityError` (19) naming a file that is missing, added, changed or replaced by a link.
    """
    recorded = read_manifest(folder)["files"]
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
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
        if path.is_symlink():
            raise IntegrityError(f"{path} is a symbolic link", fix="build or pull the bundle again")
        actual = digest(path)
        if actual != recorded[name]["sha256"]:
            raise IntegrityError(
                f"{path} has SHA-256 {actual[:16]}…, the manifest records {recorded[name]['sha256'][:16]}…",
                fix="build or pull the bundle again; do not ship this file",
            )
    return len(recorded)

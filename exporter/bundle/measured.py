"""What devices measured of a bundle, kept in it: `measured/NAME-DIGEST.json`, listed in the manifest like every file.

A record tells the board, never the host or user behind it: bundles are published.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.bundle.manifest import MANIFEST_NAME, read_manifest, rewrite_manifest
from exporter.errors import IntegrityError, UsageError
from exporter.system.files import canonical_json, write_bytes

FOLDER = "measured"
NAME_RULE = r"[a-z0-9][a-z0-9._-]*"
_DIGITS = 12
_FILE = re.compile(rf"({NAME_RULE})-[0-9a-f]{{{_DIGITS}}}\.json")
_LONGEST_NAME = 60


def device_name(report: Mapping[str, Any], wanted: str | None = None) -> str:
    """Return what the device of `report` is called: `wanted`, or made from the place, or from the board's own name.

    Raises `UsageError` (2) if `wanted` is no plain name.
    """
    if wanted is not None:
        require_name(wanted)
        return wanted
    place, device = kind_of(report["where"]), report["device"]
    if place == "local" or place.startswith("emulated"):
        told = place
    else:
        told = device["board"] or device["cpu"] or device["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", told.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    return name or "device"


def require_name(name: str) -> None:
    """Raise `UsageError` (2) if `name` is no plain name."""
    if not re.fullmatch(NAME_RULE, name) or len(name) > _LONGEST_NAME:
        raise UsageError(f"--as {name!r} is no plain name", fix="write it like pi5 or pixel-8")


def kind_of(where: str) -> str:
    """Return the place without whose it is: `ssh`, `adb`, `local` or `emulated:CORE`."""
    return where if where.startswith("emulated:") else re.split(r":", where, maxsplit=1)[0]


def attach(bundle: Path, name: str, report: Mapping[str, Any]) -> Path:
    """Keep `report` in `bundle` as what device `name` measured, instead of its older record; return its file.

    The record is written before the manifest that lists it, under a name of its own, and the older one is removed
    last: a kill in between leaves a file that `validate` names and says to remove, and damages nothing.
    """
    record = canonical_json({**report, "name": name, "where": kind_of(report["where"]), "kept": None})
    folder = bundle / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(record).hexdigest()[:_DIGITS]}.json"
    older = [item for item in folder.iterdir() if _name_in(item) == name and item != path]
    write_bytes(path, record)
    rewrite_manifest(bundle, older)
    for item in older:
        item.unlink()
    build = bundle.resolve().parent
    if (build / MANIFEST_NAME).is_file() and f"{bundle.resolve().name}/{MANIFEST_NAME}" in read_manifest(
        build
    ).get("files", {}):
        rewrite_manifest(build)
    return path


def read_measured(bundle: Path) -> dict[str, dict[str, Any]]:
    """Return the records of `bundle` by the device's name, in the order of names.

    Raises `IntegrityError` (19) for a record that is not what `attach` writes.
    """
    found = {}
    for path in sorted((bundle / FOLDER).glob("*.json")):
        name = _name_in(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            is_whole = (
                name is not None and record["name"] == name and isinstance(record["measurements"], list)
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise _damaged(path) from error
        if not is_whole or name is None:
            raise _damaged(path)
        found[name] = record
    return found


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is no record of a measurement", fix="measure the bundle again")


def _name_in(path: Path) -> str | None:
    matched = _FILE.fullmatch(path.name)
    return None if matched is None else matched[1]

"""What a client remembers of a registry, so that nobody can hand it an older index or another one of the same serial."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import IntegrityError
from exporter.registry.documents import Index
from exporter.system.files import canonical_json, state_folder, wait_for_lock, write_bytes

_FILE = "registries.json"


def state_file() -> Path:
    """Return the file that holds what was seen, for every registry of this user."""
    return state_folder() / _FILE


def require_not_older(url: str, index: Index, content: bytes, *, is_signed: bool) -> None:
    """Remember the index that `url` served; `IntegrityError` if a newer one, or another of this serial, was seen before.

    A registry made anew has another identity. One in a folder, or signed by a trusted key, is taken at its word;
    anybody may have put up any other.
    """
    path = state_file()
    with wait_for_lock(path.with_suffix(".lock")):
        known = _read(path)
        seen = known.get(url)
        digest = hashlib.sha256(content).hexdigest()
        if seen is not None and seen["identity"] == index.identity:
            _compare(url, index, digest, seen)
        elif seen is not None and "://" in url and not is_signed:
            raise IntegrityError(
                f"{url} is another registry than before (identity {index.identity[:8]}…, before {seen['identity'][:8]}…)",
                fix=f"if it was made anew, remove its entry from {path}; a signed registry proves itself with --key",
            )
        known[url] = {"identity": index.identity, "serial": index.serial, "sha256": digest}
        write_bytes(path, canonical_json(known))


def _compare(url: str, index: Index, digest: str, seen: Mapping[str, Any]) -> None:
    if index.serial < seen["serial"]:
        raise IntegrityError(
            f"{url} serves an older index than before: serial {index.serial}, seen was {seen['serial']}",
            fix="somebody put back an old copy, or a cache in between is stale; ask who keeps the registry "
            f"(who put it back on purpose removes its entry from {state_file()})",
        )
    if index.serial == seen["serial"] and digest != seen["sha256"]:
        raise IntegrityError(
            f"{url} serves two different indexes with serial {index.serial}",
            fix="its copies disagree, or somebody changed one; ask who keeps the registry",
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        known = {
            str(url): {"identity": str(e["identity"]), "serial": int(e["serial"]), "sha256": str(e["sha256"])}
            for url, e in json.loads(path.read_text(encoding="utf-8")).items()
        }
        canonical_json(known)  # it will be written again
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise IntegrityError(
            f"{path} is damaged: what was seen of registries cannot be read", fix=f"remove it: rm {path}"
        ) from error
    return known

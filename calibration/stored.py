"""Sketches as bytes on disk: one container for statistics and for checkpoints, stable, checked and written whole.

Knows sketches and files. Must not know what a header says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.sketch import Sketch
from exporter.errors import IntegrityError, ResourceError

_DIGEST_BYTES = 32
_SKETCHES = "sketches"


def pack(magic: bytes, header: Mapping[str, Any], sketches: Mapping[str, Sketch]) -> bytes:
    """Return `header` (what JSON can hold) and `sketches` as bytes: equal ones give equal bytes on every machine."""
    blobs = {name: sketches[name].to_bytes() for name in sorted(sketches)}
    index = [[name, len(blob)] for name, blob in blobs.items()]
    text = json.dumps({**header, _SKETCHES: index}, sort_keys=True, ensure_ascii=True).encode()
    body = magic + len(text).to_bytes(8, "little") + text + b"".join(blobs.values())
    return body + hashlib.sha256(body).digest()


def unpack(magic: bytes, data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Sketch]]:
    """Return the header and the sketches that `pack` wrote; raises IntegrityError, naming `name`, for other bytes."""
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not data.startswith(magic) or hashlib.sha256(body).digest() != digest:
        raise IntegrityError(
            f"{name}: calibration statistics are damaged or of another version", fix="calibrate again"
        )
    start = len(magic) + 8
    end = start + int.from_bytes(body[len(magic) : start], "little")
    header = json.loads(body[start:end])
    sketches = {}
    for tensor, length in header.pop(_SKETCHES):
        sketches[tensor] = Sketch.from_bytes(body[end : end + length])
        end += length
    return header, sketches


def read_whole(path: Path) -> bytes:
    """Return the bytes of `path`; IntegrityError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}", fix="calibrate again") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises ResourceError when the disk refuses."""
    # Written beside, flushed and renamed: a kill at any point leaves the old file or the new one.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ResourceError(
            f"cannot write {len(data)} bytes of calibration statistics to {path}: {error.strerror}",
            fix="free some space, or write elsewhere",
        ) from error

"""The files that arrive on standard input, checked."""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path
from typing import IO

from targets.devices.probe.events import Json, ProbeError

SPARE_BYTES = 16_000_000


def receive(stream: IO[bytes], folder: Path, files: list[Json]) -> None:
    """Write the files that follow on `stream`, checking room and digests."""
    need, room = sum(item["bytes"] for item in files) + SPARE_BYTES, shutil.disk_usage(folder).free
    if room < need:
        raise ProbeError(
            f"{folder.parent} needs {need / 1e6:.0f} MB free, has {room / 1e6:.0f} MB",
            "free some, or set TMPDIR on the device to a larger disk",
        )
    try:
        for item in files:
            receive_one(stream, folder / item["path"], item)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        left = shutil.disk_usage(folder).free
        raise ProbeError(
            f"{folder.parent} filled up while files arrived: {need / 1e6:.0f} MB are needed, {room / 1e6:.0f} MB were "
            f"free, {left / 1e6:.0f} MB are left",
            "free some, or set TMPDIR on the device to a larger disk",
        ) from None


def receive_one(stream: IO[bytes], path: Path, item: Json) -> None:
    """Write the file that follows on `stream` to `path`, checking its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), item["bytes"]
    with path.open("wb") as out:
        while left:
            chunk = stream.read(min(left, 1 << 20))
            if not chunk:
                raise ProbeError("the link broke while {} was sent".format(item["path"]), "try again")
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if digest.hexdigest() != item["sha256"]:
        raise ProbeError("{} arrived with other bytes".format(item["path"]), "try again", "integrity")

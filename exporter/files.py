"""Files that are whole or absent: digests, atomic writes, locks, and folders that appear at once.

Framework-free. Every file that a build leaves behind goes through this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.errors import BusyError, EdgeError, InputError, ResourceError

_CHUNK_BYTES = 1 << 20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_STAGING_PREFIX = ".edge-staging-"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder: that of its sorted lines `relative/path\\0digest\\n`."""
    if not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    lines = hashlib.sha256()
    for file in sorted_files(path):
        lines.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return lines.hexdigest()


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in sorted_files(path)) if path.is_dir() else path.stat().st_size


def sorted_files(folder: Path) -> list[Path]:
    """Return every regular file below `folder`, in an order that does not depend on the file system."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix())


def require_file(path: Path, *, what: str) -> Path:
    """Return `path` if it is a readable, non-empty regular file; `InputError` with near names otherwise."""
    if not path.exists():
        near = near_paths(path)
        fix = (
            f"did you mean {', '.join(near)}?"
            if near
            else f"check the path; {path.parent} holds no such file"
        )
        raise InputError(f"{what} {path} does not exist", fix=fix)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{what} {path} is {kind}", fix="name a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{what} {path} cannot be read", fix=f"run: chmod u+r {path}")
    if path.stat().st_size == 0:
        raise InputError(f"{what} {path} is empty (0 bytes)", fix="copy or download it again")
    return path


def near_paths(path: Path) -> list[str]:
    """Return up to three existing siblings whose names resemble `path`'s."""
    import difflib

    if not path.parent.is_dir():
        return []
    names = sorted(sibling.name for sibling in path.parent.iterdir())
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3)]


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part."""
    with disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as canonical JSON (sorted keys, UTF-8, two spaces); refuses NaN and infinities."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a failing one into a `ResourceError` that names `path` and the figures."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}:
            raise _disk_error(path, error) from error
        raise


def _disk_error(path: Path, error: OSError) -> EdgeError:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free_mb = shutil.disk_usage(existing).free / 1e6
    return ResourceError(
        f"cannot write {path}: {error.strerror} ({free_mb:.0f} MB free on its disk)",
        fix="free some space or choose another folder with --out",
    )


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the block runs; `BusyError` names the holder otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise BusyError(
                f"{what} is being written by {holder}", fix="wait for it to end, or choose another --out"
            ) from held
        stream.truncate(0)
        stream.write(f"process {os.getpid()}\n")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


@contextlib.contextmanager
def appear_at_once(destination: Path) -> Iterator[Path]:
    """Yield an empty staging folder beside `destination`; when the block succeeds it becomes `destination`.

    An older `destination` is swapped out in one step where the system can do that, and removed. If the
    block fails, `destination` is untouched and the staging folder is removed. Folders left behind by a
    killed process are removed on the next entry. The caller must hold a lock on `destination`.
    """
    parent = destination.parent
    with disk_errors(destination):
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{_STAGING_PREFIX}{destination.name}-"
        for leftover in sorted(parent.glob(f"{prefix}*")):
            shutil.rmtree(leftover)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        staging.chmod(0o755)
        yield staging
        with disk_errors(destination):
            _sync_tree(staging)
            _swap_in(staging, destination)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _sync_tree(folder: Path) -> None:
    for path in (*sorted_files(folder), *sorted(folder.rglob("*/")), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap_in(staging: Path, destination: Path) -> None:
    if not destination.exists():
        staging.rename(destination)
    elif not _exchange(staging, destination):
        # No atomic exchange on this system: the gap is two renames long, and the old tree survives in it.
        aside = staging.with_name(staging.name + "-old")
        destination.rename(aside)
        staging.rename(destination)
        shutil.rmtree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directory entries atomically (Linux `renameat2`); return whether the system could."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    status: int = libc.renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    return status == 0

"""Files that are whole or absent: digests, atomic writes, locks, and folders that appear at once.

Framework-free. Every file that a build leaves behind goes through this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from exporter.errors import BusyError, EdgeError, InputError, ResourceError, UsageError

_CHUNK_BYTES = 1 << 20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_UNFINISHED = ".edge-unfinished-"
_NAME_IN_UNFINISHED = 100  # of 255 bytes that a name may have
_STAGING_PREFIX = ".edge-staging-"
_ASIDE_SUFFIX = "-old"
_SCRATCH_LOCK = "lock"
_ABANDONED_SECONDS = 600.0


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder: that of its sorted lines `relative/path\\0digest\\n`."""
    if not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    lines = hashlib.sha256()
    for file in sorted_files(path):
        lines.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return lines.hexdigest()


def cache_folder() -> Path:
    """Return the tool's own folder below `$XDG_CACHE_HOME`, by default `~/.cache`; it may be removed at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edge-exporter"


def state_folder() -> Path:
    """Return the tool's own folder below `$XDG_STATE_HOME`, by default `~/.local/state`: what it must not forget."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "edge-exporter"


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in sorted_files(path)) if path.is_dir() else path.stat().st_size


def sorted_files(folder: Path) -> list[Path]:
    """Return every regular file below `folder`, in an order that does not depend on the file system."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix())


def require_file(path: Path, *, what: str) -> Path:
    """Return `path` if it is a readable, non-empty regular file; `InputError` with near names otherwise."""
    if not _exists(path):
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


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def near_paths(path: Path) -> list[str]:
    """Return up to three existing siblings whose names resemble `path`'s."""
    import difflib

    if not _exists(path.parent) or not path.parent.is_dir():
        return []
    names = sorted(sibling.name for sibling in path.parent.iterdir())
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3)]


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part.

    Raises `InputError` if there is no folder for it, `ResourceError` for a full or failing disk.
    """
    if not path.parent.is_dir():
        raise InputError(
            f"cannot write {path}: {path.parent} is no folder",
            fix=f"make it, or name another: mkdir -p {path.parent}",
        )
    with disk_errors(path):
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:_NAME_IN_UNFINISHED]}{_UNFINISHED}", dir=path.parent
        )
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


def is_unfinished(path: Path) -> bool:
    """Whether `path` is what a killed `write_bytes` was writing."""
    return (
        re.fullmatch(rf"\..*{re.escape(_UNFINISHED)}[a-z0-9_]{{8}}", path.name) is not None and path.is_file()
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `canonical_json`; `ValueError` for NaN and infinities."""
    write_bytes(path, canonical_json(value))


def canonical_json(value: Any) -> bytes:
    """Return `value` in the one spelling used here: sorted keys, two spaces, UTF-8; `ValueError` for NaN."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


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
    # Of a copy, the second name is the one that is written.
    name = error.filename2 or error.filename
    named = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else path
    existing = next(parent for parent in (named, *named.absolute().parents) if parent.exists())
    free_mb = shutil.disk_usage(existing).free / 1e6
    return ResourceError(
        f"cannot write {named}: {error.strerror} ({free_mb:.1f} MB free on its disk)",
        fix="free some space or choose another folder with --out",
    )


def require_folder(path: Path, *, what: str) -> None:
    """Make the folder `path`, so that it is known before the work whether it can be written; `UsageError` names `what`."""
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise UsageError(
                f"{what} {path} cannot be a folder: {error.strerror}", fix="name a folder that can be written"
            ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(
            f"{what} {path} cannot be written", fix="change its permissions, or name another folder"
        )


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the block runs; `BusyError` names the holder otherwise.

    The block may remove `path` before it ends.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(path):
            stream = stack.enter_context(_locked(path, what))
            stream.truncate(0)
            stream.write(f"process {os.getpid()}\n")
            stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for whoever has it; the file stays, for the next one to lock."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = _open_lock(path)
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _locked(path: Path, what: str) -> TextIO:
    """Return the open, locked file that `path` names; whoever held it before may have just removed it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = _open_lock(path)
        except FileNotFoundError:  # the holder took the folder away with the lock, as a failed build does
            continue
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            with stream:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
            raise BusyError(
                f"{what} is being written by {holder}", fix="wait for it to end, or choose another --out"
            ) from held
        if _is_named(stream, path):
            return stream
        stream.close()


def _open_lock(path: Path) -> TextIO:
    """Open a lock file, made if there is none; never one that a link leads to, and never a pipe that waits for a writer."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise _no_lock(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_lock(path)
    return os.fdopen(handle, "r+", encoding="utf-8")


def _no_lock(path: Path) -> EdgeError:
    return InputError(
        f"{path} is no plain file, and a lock belongs there", fix=f"look at it, then remove it: {path}"
    )


def _is_named(stream: TextIO, path: Path) -> bool:
    """Whether `path` is still the file behind `stream`: a lock on a file without a name excludes nobody."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder in the system's temporary folder, and remove it when the block ends.

    Folders of the same `purpose` that a killed process left behind are removed first: a live one is known by
    the lock its process holds. Raises `ResourceError` when the disk is full.
    """
    prefix = f"edge-{purpose}-"
    base = Path(tempfile.gettempdir())
    for leftover in sorted(base.glob(f"{glob.escape(prefix)}*")):
        if _is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    with disk_errors(base):
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        with disk_errors(home), (home / "unlocked").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Named only once it is locked, so that nobody takes a folder in the making for an abandoned one.
            (home / "unlocked").rename(home / _SCRATCH_LOCK)
            folder = home / "scratch"
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _is_abandoned(home: Path) -> bool:
    try:
        with (home / _SCRATCH_LOCK).open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            return time.time() - home.stat().st_mtime > _ABANDONED_SECONDS
        return False
    except OSError:  # held by a living process, or somebody else's folder
        return False
    return True


@contextlib.contextmanager
def appear_at_once(destination: Path) -> Iterator[Path]:
    """Yield an empty staging folder beside `destination`; when the block succeeds it becomes `destination`.

    An older `destination` is swapped out in one step where the system can do that, and removed. If the
    block fails, `destination` is untouched and the staging folder is removed. Folders left behind by a
    killed process are removed on the next entry. The caller must hold a lock on `destination`.
    Raises `ResourceError` for a full or failing disk, in the block too.
    """
    parent = destination.parent
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        kind = "a symbolic link" if destination.is_symlink() else "a file"
        raise InputError(
            f"{destination} is {kind}, and a folder is to be written there",
            fix="remove it, or choose another --out",
        )
    with disk_errors(destination):
        parent.mkdir(parents=True, exist_ok=True)
        # The @ keeps 1.0.0 from taking the staging folder of 1.0.0-rc.1 for its own: no SemVer holds one.
        prefix = f"{_STAGING_PREFIX}{destination.name}@"
        _clear_leftovers(destination, sorted(parent.glob(f"{glob.escape(prefix)}*")))
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with disk_errors(destination):
            staging.chmod(0o755)
            yield staging
            _sync_tree(staging)
            _swap_in(staging, destination)
            _sync(parent)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _clear_leftovers(destination: Path, leftovers: Sequence[Path]) -> None:
    """Remove what a killed process left; the older tree it had moved aside goes back to its place."""
    for leftover in leftovers:
        if leftover.name.endswith(_ASIDE_SUFFIX) and not destination.exists():
            leftover.rename(destination)
        else:
            shutil.rmtree(leftover)


def _sync_tree(folder: Path) -> None:
    for path in (*sorted_files(folder), *sorted(folder.rglob("*/")), folder):
        _sync(path)


def _sync(path: Path) -> None:
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
        aside = staging.with_name(staging.name + _ASIDE_SUFFIX)
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

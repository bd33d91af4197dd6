"""Files at a URL: a folder, S3, GCS, anything fsspec reaches, or plain HTTP to read from.

A folder is written through `exporter.files` (whole or absent, synced, locked while its process lives); every other place
through fsspec. A store knows bytes and paths, never what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from exporter.errors import (
    BusyError,
    EdgeError,
    InputError,
    IntegrityError,
    TimeLimitError,
    UnsupportedError,
    UsageError,
    first_line,
)
from exporter.files import disk_errors, hold_lock, write_bytes

LARGEST_DOCUMENT = 64 << 20
"""Bytes of an index, a release or a view beyond which something else is being served."""
LOCK = ".edge-publish.lock"
LEASE_SECONDS = 600.0
REQUEST_SECONDS = 60.0
_CHUNK = 4 << 20
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_WEB = {"http", "https"}
_TRIES = 3


class Store(Protocol):
    """Where a registry lies. Paths are relative, with `/`, and never leave the root."""

    @property
    def url(self) -> str:
        """The URL as a person would give it again, without a slash at its end and without credentials."""

    @property
    def is_writable(self) -> bool:
        """Whether anything can be published there."""

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`, or `None` if there is none; `IntegrityError` if it is over `limit` bytes."""

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of `path` from `start` to `size`; `IntegrityError` if there are not that many."""

    def write(self, path: str, content: bytes) -> None:
        """Put `content` at `path`, in one step: a reader sees the old content or the new."""

    def upload(self, path: str, source: Path) -> None:
        """Put the file `source` at `path`, in one step."""

    def delete(self, path: str) -> None:
        """Remove `path` if it is there."""

    def listing(self) -> list[str] | None:
        """Return the path of every file, sorted, or `None` where nobody can list them."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other publishers out for as long as the block runs; `BusyError` names the one who is in."""


def open_store(url: str, *, timeout_s: float = REQUEST_SECONDS) -> Store:
    """Return the store at `url`: a path, `file://`, `s3://`, `gs://`, `http(s)://` or another of fsspec's.

    Raises `UsageError` for what is no URL, `UnsupportedError` naming the extra that a protocol needs.
    """
    if not url or not url.isprintable() or url.startswith("-"):
        raise UsageError(
            f"{url!r} is no registry's URL", fix="give a folder, or a URL such as s3://bucket/path"
        )
    protocol, separator, rest = url.partition("://")
    if not separator:
        return FolderStore(Path(url).absolute())
    if protocol in {"file", "local"}:
        return FolderStore(Path("/" + rest.lstrip("/")))
    if not rest.strip("/"):
        raise UsageError(
            f"{url} names no place", fix="write the whole URL, such as https://models.example.com/edge"
        )
    return _open_remote(protocol, url.rstrip("/"), timeout_s)


def require_inside(path: str) -> PurePosixPath:
    """Return `path` as a relative path; `IntegrityError` if it could lead out of a registry."""
    pure = PurePosixPath(path)
    if not path or "\\" in path or not path.isprintable() or pure.is_absolute() or ".." in pure.parts:
        raise IntegrityError(
            f"the registry names {path!r}, which is no path inside it", fix="do not use this registry"
        )
    return pure


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A registry in a folder of this machine."""

    root: Path

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def is_writable(self) -> bool:
        """A folder may be published to; permissions are told when they are missed."""
        return True

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`; a symbolic link on the way is refused, as content nobody published."""
        file = self._file(path)
        if not file.exists():
            return None
        if file.stat().st_size > limit:
            raise _too_large(self.url, path, file.stat().st_size, limit)
        return file.read_bytes()

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of `path` from `start` on."""
        file = self._file(path)
        if not file.is_file():
            raise _missing(self.url, path)
        if file.stat().st_size != size:
            raise _wrong_size(self.url, path, file.stat().st_size, size)
        with file.open("rb") as stream:
            stream.seek(start)
            while chunk := stream.read(_CHUNK):
                yield chunk

    def write(self, path: str, content: bytes) -> None:
        """Write beside, sync, rename."""
        file = self._file(path)
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)

    def upload(self, path: str, source: Path) -> None:
        """Write beside, sync, rename."""
        self.write(path, source.read_bytes())

    def delete(self, path: str) -> None:
        """Remove `path`, if it is there."""
        self._file(path).unlink(missing_ok=True)

    def listing(self) -> list[str] | None:
        """Return every file and every link, also one to a folder."""
        found = []
        for folder, folders, files in os.walk(self.root):
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            found += [(Path(folder) / name).relative_to(self.root).as_posix() for name in (*files, *links)]
        return sorted(name for name in found if name != LOCK)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lock that the system lets go of when this process ends, however it ends."""
        path = self.root / LOCK
        occupied = next((item for item in (self.root, *self.root.parents) if item.exists()), self.root)
        if not occupied.is_dir():
            raise InputError(f"{occupied} is a file, and a registry is a folder", fix="name another folder")
        with disk_errors(path):
            self.root.mkdir(parents=True, exist_ok=True)
        with hold_lock(path, what=f"the registry {self.root}"):
            self._clear_leftovers()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _clear_leftovers(self) -> None:
        """Remove the files that a killed publisher was writing beside their places."""
        for path in self.root.rglob(".*"):
            if path.is_file() and path.name != LOCK and re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):
                path.unlink()

    def _file(self, path: str) -> Path:
        relative = require_inside(path)
        file = self.root / relative
        for parent in (file, *file.parents):
            if parent == self.root:
                break
            if parent.is_symlink():
                raise IntegrityError(
                    f"{parent} is a symbolic link", fix="publish again: nothing in a registry is a link"
                )
        return file


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """A registry behind fsspec; `is_writable` is false for plain HTTP."""

    files: Any
    root: str
    url: str
    is_writable: bool
    timeout_s: float

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`; asks again when the connection breaks."""
        where = self._at(path)
        content: bytes | None = self._ask(path, lambda: _or_none(lambda: self.files.cat_file(where)))
        if content is not None and len(content) > limit:
            raise _too_large(self.url, path, len(content), limit)
        return content

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield ranges; a server that does not know ranges sends the whole, of which the rest is taken."""
        where, at = self._at(path), start
        while at < size:
            begin, end = at, min(at + _CHUNK, size)
            content = self._range(path, where, begin, end)
            if content is None:
                raise _missing(self.url, path)
            if len(content) != end - begin:
                if len(content) != size:
                    raise _wrong_size(self.url, path, begin + len(content), size)
                content, end = content[begin:], size
            yield content
            at = end

    def _range(self, path: str, where: str, begin: int, end: int) -> bytes | None:
        content: bytes | None = self._ask(
            path, lambda: _or_none(lambda: self.files.cat_file(where, start=begin, end=end))
        )
        return content

    def write(self, path: str, content: bytes) -> None:
        """Put one object; object stores show it whole or not at all."""
        where = self._at(path)
        self._ask(path, lambda: self.files.pipe_file(where, content))

    def upload(self, path: str, source: Path) -> None:
        """Put one object from a file, in parts where it is large."""
        where = self._at(path)
        self._ask(path, lambda: self.files.put_file(str(source), where))

    def delete(self, path: str) -> None:
        """Remove one object, if it is there."""
        where = self._at(path)
        self._ask(path, lambda: _or_none(lambda: self.files.rm_file(where)))

    def listing(self) -> list[str] | None:
        """Return every object below the root; `None` for HTTP, which lists nothing."""
        if not self.is_writable:
            return None
        self.files.invalidate_cache()
        prefix = f"{self.root}/"
        found: list[str] = self._ask("", lambda: _or_none(lambda: self.files.find(self.root))) or []
        names = (name.removeprefix(prefix) for name in found)
        return sorted(name for name in names if name and name != LOCK)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lease: an object that only one can create, and that counts for nothing once its time is over."""
        where, held = self._at(LOCK), f"{socket.gethostname()} process {os.getpid()} until "
        mine = f"{held}{time.time() + LEASE_SECONDS:.0f}\n".encode()
        try:
            self._create(where, mine)
        except FileExistsError:
            holder = (self.read(LOCK) or b"").decode("utf-8", errors="replace").strip()
            if not _is_over(holder) and not _is_dead(holder):
                raise BusyError(
                    f"{self.url} is being published to by {holder or 'another process'}",
                    fix=f"wait for it to end; if it was killed, its lease ends after {LEASE_SECONDS / 60:.0f} minutes",
                ) from None
            self.delete(LOCK)
            self._create(where, mine)
        try:
            yield
        finally:
            self.delete(LOCK)

    def _create(self, where: str, content: bytes) -> None:
        try:
            self._ask(LOCK, lambda: self.files.pipe_file(where, content, mode="create"))
        except (NotImplementedError, TypeError):  # a store without conditional writes: look, then write
            if self.read(LOCK) is not None:
                raise FileExistsError(where) from None
            self._ask(LOCK, lambda: self.files.pipe_file(where, content))

    def _at(self, path: str) -> str:
        return f"{self.root}/{require_inside(path)}"

    def _ask(self, path: str, action: Callable[[], Any]) -> Any:
        """Do `action`, again if the connection broke; errors of every fsspec implementation become ours."""
        for number in range(1, _TRIES + 1):
            try:
                return action()
            except (EdgeError, FileExistsError, NotImplementedError, TypeError):
                raise
            except Exception as error:
                if number < _TRIES and _is_passing(error):
                    time.sleep(0.2 * number)
                    continue
                raise self._told(path, error) from error
        raise AssertionError("unreachable")

    def _told(self, path: str, error: Exception) -> EdgeError:
        where = f"{self.url}/{path}".rstrip("/")
        if isinstance(error, TimeoutError):
            return TimeLimitError(
                f"{where} did not answer within {self.timeout_s:.0f} s",
                fix="look at the network, or allow more with --timeout",
            )
        if isinstance(error, PermissionError) or "403" in str(error) or "401" in str(error):
            return IntegrityError(
                f"{where}: access is denied ({first_line(error)})", fix="check the credentials for this URL"
            )
        return IntegrityError(
            f"{where} cannot be reached ({type(error).__name__}: {first_line(error)})",
            fix="check the URL and the network; a pull goes on where it stopped",
        )


def _open_remote(protocol: str, url: str, timeout_s: float) -> Store:
    import fsspec

    if protocol not in fsspec.available_protocols():
        raise UsageError(
            f"no registry lies at a {protocol}:// URL", fix="use a folder, s3://, gs:// or https://"
        )
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in _WEB:
        import aiohttp

        options = {
            "skip_instance_cache": True,
            "client_kwargs": {
                "timeout": aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 15.0)),
                "trust_env": True,
            },
        }
    elif protocol in {"s3", "s3a"}:
        options["config_kwargs"] = {"read_timeout": timeout_s, "connect_timeout": min(timeout_s, 15.0)}
    try:
        files, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install 'edge-exporter[{extra}]'" if extra else first_line(error)
        raise UnsupportedError(f"{protocol}:// needs a library that is not installed", fix=fix) from error
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{_without_credentials(url)} is no URL: {first_line(error)}", fix="check it"
        ) from error
    return RemoteStore(
        files, str(root).rstrip("/"), _without_credentials(url), protocol not in _WEB, timeout_s
    )


def _without_credentials(url: str) -> str:
    return re.sub(r"^([a-z0-9+.-]+://)[^/@]*@", r"\1", url)


def _or_none(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except FileNotFoundError:
        return None


def _is_passing(error: Exception) -> bool:
    """Whether asking again may help: the connection broke, or the server was busy."""
    if isinstance(error, TimeoutError):  # it was given its time
        return False
    return isinstance(error, OSError) or type(error).__name__ in {
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ClientOSError",
    }


def _is_over(holder: str) -> bool:
    found = re.search(r" until ([0-9]{1,12})$", holder)
    return found is None or float(found[1]) < time.time()


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    found = re.fullmatch(r"(.+) process ([0-9]{1,9}) until [0-9]+", holder)
    if found is None or found[1] != socket.gethostname():
        return False
    try:
        os.kill(int(found[2]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _missing(url: str, path: str) -> IntegrityError:
    return IntegrityError(
        f"{url}/{path} is missing, and the registry lists it",
        fix="publish that version again, or ask who keeps the registry",
    )


def _wrong_size(url: str, path: str, actual: int, expected: int) -> IntegrityError:
    return IntegrityError(
        f"{url}/{path} has {actual} bytes where the registry records {expected}",
        fix="try again; if it stays so, the file was damaged after it was published",
    )


def _too_large(url: str, path: str, actual: int, limit: int) -> IntegrityError:
    return IntegrityError(
        f"{url}/{path} has {actual} bytes, over the {limit} that such a document may have",
        fix="do not use this registry",
    )

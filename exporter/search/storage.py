"""Where a study lives: any storage of Optuna's, opened so that its failures name it, its password masked.

A study on a shared storage is what several processes and machines work on at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from sqlalchemy import exc

from exporter.errors import DeviceError, EdgeError, InputError, ResourceError, UnsupportedError, UsageError
from exporter.search.addresses import is_local, masked
from exporter.system.files import disk_errors

CONNECT_SECONDS = 10
LOCK_SECONDS = 60
_OPENING_ATTEMPTS = 6
_TABLES_IN_THE_MAKING = ("already exists", "UNIQUE constraint failed", "database is locked", "no such table")


def open_storage(url: str) -> BaseStorage:
    """Return the storage at `url`: `sqlite:///file.db`, a journal (`file.log`, `journal://file.log`,
    `redis://host`), `grpc://host:port` of a storage proxy, or a database URL as SQLAlchemy writes them.

    Raises `UsageError` for a URL that names none of them, `InputError` (10) for a file that is no storage or
    cannot be opened, `ResourceError` (15) for a full disk, `UnsupportedError` (12) for a driver that is not
    installed, `DeviceError` (18) for a host that does not answer or refuses.
    """
    scheme, separator, rest = url.partition("://")
    with speaking_of(url):
        if separator and scheme == "journal":
            return _journal(Path(rest))
        if not separator and url.endswith(".log"):
            return _journal(Path(url))
        if scheme == "redis" and separator:
            return _redis(url)
        if scheme == "grpc" and separator:
            return _grpc(url)
        if separator:
            return _database(url)
    raise UsageError(
        f"--storage {url} is no storage",
        fix="write a journal (study.log), sqlite:///study.db, or a database URL like postgresql://user@host/name",
    )


def _journal(path: Path) -> BaseStorage:
    _require_folder_of(path)
    with disk_errors(path):
        return JournalStorage(JournalFileBackend(str(path)))


def _require_folder_of(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(
            f"the storage {path} cannot be: there is no folder {path.parent}", fix="make that folder"
        )
    if path.is_dir():
        raise InputError(f"the storage {path} is a folder", fix="name a file in it")


def _redis(url: str) -> BaseStorage:
    import redis  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from optuna.storages.journal import JournalRedisBackend

    try:
        redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS).ping()
    except redis.exceptions.RedisError as error:
        raise ConnectionError(str(error)) from error
    backend: BaseJournalBackend = JournalRedisBackend(url)
    return JournalStorage(backend)


def _grpc(url: str) -> BaseStorage:
    import grpc  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from optuna.storages import GrpcStorageProxy

    place = urlsplit(url)
    proxy: BaseStorage = GrpcStorageProxy(host=place.hostname or "localhost", port=place.port or 13000)
    channel = grpc.insecure_channel(f"{place.hostname or 'localhost'}:{place.port or 13000}")
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise ConnectionError("no answer") from error
    finally:
        channel.close()
    return proxy


def _database(url: str) -> BaseStorage:
    sqlalchemy.engine.make_url(url)  # a better complaint of a broken URL than Optuna's
    dialect = url.partition("://")[0].partition("+")[0]
    connect: dict[str, Any] = {}
    if dialect == "sqlite":
        file = url.partition(":///")[2].partition("?")[0]
        if not file or file == ":memory:":
            raise UsageError(
                f"--storage {url} holds its study in memory, which ends with this process",
                fix="write sqlite:///study.db",
            )
        _require_folder_of(Path(file))
        connect = {"timeout": LOCK_SECONDS}
    elif dialect in {"postgresql", "mysql", "mariadb"}:
        connect = {"connect_timeout": CONNECT_SECONDS}
    for attempt in range(1, _OPENING_ATTEMPTS + 1):
        try:
            return RDBStorage(url, engine_kwargs={"connect_args": connect})
        except (exc.OperationalError, exc.IntegrityError, exc.ProgrammingError, RuntimeError) as error:
            # Processes that open a new database together trip over each other's tables.
            racing = isinstance(error, RuntimeError) or any(
                sign in str(error) for sign in _TABLES_IN_THE_MAKING
            )
            if not racing or attempt == _OPENING_ATTEMPTS:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("the loop returns or raises")


@contextlib.contextmanager
def speaking_of(url: str) -> Iterator[None]:
    """Turn what goes wrong with the storage at `url` inside the block into an `EdgeError` that names it."""
    try:
        yield
    except EdgeError:
        raise
    except (
        exc.SQLAlchemyError,
        ConnectionError,
        ImportError,
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
    ) as error:
        raise _told(url, error) from error
    except optuna.exceptions.StorageInternalError as error:
        raise _told(url, error.__cause__ or error) from error


def _told(url: str, error: BaseException) -> EdgeError:
    name, line = masked(url), masked(_reason(error))
    if isinstance(error, ImportError | exc.NoSuchModuleError):
        return UnsupportedError(
            f"the storage {name} needs a driver that is not installed: {line}",
            fix="install it, for example: pip install psycopg2-binary (postgresql), PyMySQL (mysql+pymysql), redis, grpcio",
        )
    if isinstance(error, exc.ArgumentError):
        return UsageError(f"--storage {name} is no database URL: {line}", fix="write like sqlite:///study.db")
    if is_local(url):
        if "disk is full" in line or "disk I/O" in line:
            return ResourceError(f"the storage {name} cannot be written: {line}", fix="free some space")
        if "database is locked" in line:
            return ResourceError(
                f"the storage {name} stayed locked for {LOCK_SECONDS} s: {line}",
                fix="end what holds it, or use a journal (study.log) or a database server",
            )
        fix = "name a new file, or one that edge-export tune has made"
        if isinstance(error, ValueError | EOFError):
            fix = (
                "a process may have been killed while it wrote: remove the last, broken line of the file, or "
                + fix
            )
        return InputError(f"the storage {name} cannot be used: {line}", fix=fix)
    return DeviceError(
        f"the storage {name} cannot be reached: {line}",
        fix="check host, port, user and password, and that the server runs and lets this machine in",
    )


def _reason(error: BaseException) -> str:
    origin = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(origin).strip().splitlines() if line.strip()]
    return (lines or [type(origin).__name__])[0][:300]

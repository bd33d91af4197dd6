"""Asking something over a network: again where that may help, and every library's complaint becomes one of our errors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from exporter.errors import EdgeError, IntegrityError, TimeLimitError, first_line

_Answer = TypeVar("_Answer")
_TRIES = 3
_BROKEN_CONNECTIONS = {"ClientPayloadError", "ServerDisconnectedError", "ClientOSError"}


@dataclass(frozen=True, slots=True)
class Network:
    """A place behind a network: its URL without credentials, and how many seconds it has for one request."""

    url: str
    timeout_s: float

    def ask(self, path: str, action: Callable[[], _Answer]) -> _Answer:
        """Do `action` on `path` and return its answer.

        A broken connection is tried three times. Raises `TimeLimitError` (16) for what does not answer, `IntegrityError`
        (19) for what refuses or cannot be reached; our own errors and those of a file that is there already pass.
        """
        for number in range(1, _TRIES + 1):
            try:
                return action()
            except (EdgeError, FileExistsError, NotImplementedError, TypeError):
                raise
            except Exception as error:  # fsspec, s3fs, gcsfs and what is below them raise types of their own
                if number < _TRIES and _is_passing(error):
                    time.sleep(0.2 * number)
                    continue
                raise self.told(path, error) from error
        raise AssertionError("unreachable")

    def told(self, path: str, error: Exception) -> EdgeError:
        """Return what `error` means to a person who asked for `path`."""
        where = f"{self.url}/{path}".rstrip("/")
        if isinstance(error, TimeoutError):
            return TimeLimitError(
                f"{where} did not answer within {self.timeout_s:.0f} s",
                fix="look at the network, or allow more with --timeout",
            )
        if (
            isinstance(error, PermissionError)
            or _status(error) in {401, 403}
            or re.search(r"\b40[13]\b", str(error))
        ):
            return IntegrityError(
                f"{where}: access is denied ({_reason(error)})", fix="check the credentials for this URL"
            )
        return IntegrityError(
            f"{where} cannot be reached ({_reason(error)})",
            fix="check the URL and the network; a pull goes on where it stopped",
        )


def _status(error: Exception) -> int:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else 0


def _reason(error: Exception) -> str:
    """Return one short line; libraries quote whole answers."""
    said = first_line(error)
    if type(error).__name__ == "TooManyRedirects":
        said = "it redirects without end"
    elif _status(error) >= 500 or _status(error) in {401, 403}:
        said = f"HTTP status {_status(error)}"
    elif not isinstance(error, PermissionError):
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= 200 else f"{said[:199]}…"


def _is_passing(error: Exception) -> bool:
    """Whether asking again may help: the connection broke, or the server was busy."""
    if isinstance(error, TimeoutError):  # it was given its time
        return False
    return isinstance(error, OSError) or type(error).__name__ in _BROKEN_CONNECTIONS

"""Every failure a user can meet, with its stable code and exit status.

One hierarchy, one boundary: code below `exporter.cli` raises these and never prints or exits;
the command line turns each into one line, `error[E-code]: cause; fix: what to do`.
Framework-free: imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class EdgeError(Exception):
    """A failure whose cause is known and that the user can act on.

    `cause` names the file, tensor, value or host; `fix` says what to do about it.
    `details` carries machine-readable figures into `--json`.
    """

    code: ClassVar[str] = "E-internal"
    exit_code: ClassVar[int] = 70

    def __init__(self, cause: str, *, fix: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.fix = fix
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.cause}; fix: {self.fix}"


class UsageError(EdgeError):
    """The command line asks for something that does not exist."""

    code, exit_code = "E-usage", 2


class RecipeError(EdgeError):
    """The recipe cannot be read, or says something that no recipe can say."""

    code, exit_code = "E-recipe", 2


class InputError(EdgeError):
    """A model, weight or bundle file is missing, truncated or not what it claims to be."""

    code, exit_code = "E-input", 10


class UnsafeError(EdgeError):
    """Reading the input would run code or reach outside its folder."""

    code, exit_code = "E-unsafe", 11


class UnsupportedError(EdgeError):
    """The input is sound, and this tool, format or runtime cannot take it."""

    code, exit_code = "E-unsupported", 12


class CalibrationError(EdgeError):
    """The calibration or evaluation data is unusable."""

    code, exit_code = "E-calibration", 13


class GateError(EdgeError):
    """A measured figure misses its floor or budget; nothing was published."""

    code, exit_code = "E-gate", 14


class ResourceError(EdgeError):
    """Disk or memory ran out."""

    code, exit_code = "E-resource", 15


class TimeLimitError(EdgeError):
    """Something took longer than its limit."""

    code, exit_code = "E-timeout", 16


class BusyError(EdgeError):
    """Another process holds what this one needs."""

    code, exit_code = "E-busy", 17


class DeviceError(EdgeError):
    """A device or remote host refused, vanished or does not fit."""

    code, exit_code = "E-device", 18


class IntegrityError(EdgeError):
    """Bytes are not the bytes that were recorded."""

    code, exit_code = "E-integrity", 19


class InternalError(EdgeError):
    """Our own bug, or a component that died under us."""

    code, exit_code = "E-internal", 70


def first_line(error: BaseException) -> str:
    """Return the first line of what `error` says, at most 300 characters; its class if it says nothing."""
    return _first_line(error) or type(error).__name__


def said(error: BaseException) -> str:
    """Return the class of `error` and the first line of what it says."""
    return f"{type(error).__name__}: {_first_line(error) or '(no message)'}"


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), "")[:300]


INTERRUPTED_EXIT_CODE = 130

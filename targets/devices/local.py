"""This host as a device: the probe runs under the interpreter that runs the tool."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from exporter.errors import DeviceError, EdgeError
from targets.devices.base import BOOTSTRAP, last_line


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """This host."""

    where: str = "local"

    def command(self) -> list[str]:
        """Return the command that reads the probe from its standard input."""
        return [sys.executable, "-c", BOOTSTRAP]

    def explain(self, exit_code: int, complaint: str) -> EdgeError:
        """Return why the probe ended without an answer."""
        return DeviceError(
            f"the probe ended with exit code {exit_code}: {last_line(complaint)}",
            fix="try again; if it persists, send the log",
        )

"""Where a bundle is measured: every place runs the same probe and answers in one schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporter.errors import UsageError
from targets.devices import adb
from targets.devices.adb import AdbDevice
from targets.devices.adb_benchmark import AdbBenchmark
from targets.devices.base import Device, Instrument, Place
from targets.devices.emulated import PREFIX, EmulatedDevice
from targets.devices.local import LocalDevice
from targets.devices.ssh import SshDevice, SshOptions

__all__ = [
    "AdbBenchmark",
    "AdbDevice",
    "Device",
    "EmulatedDevice",
    "Instrument",
    "LocalDevice",
    "Place",
    "SshDevice",
    "SshOptions",
    "open_device",
]


def open_device(
    where: str,
    options: SshOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
    benchmark: Path | None = None,
) -> Place:
    """Return the device that `where` names; nothing is contacted yet.

    The first use of an emulated core downloads it; `say` hears of it. `benchmark` is a program that measures on a phone.

    Raises `UsageError` (2) for what names no place, or a host or user that a shell or ssh could misread.
    """
    is_phone = where.partition(":")[0] == adb.PREFIX
    if benchmark is not None:
        if not is_phone:
            raise UsageError(
                "--benchmark goes with --on adb", fix="leave it out; other places use Python's runtimes"
            )
        return AdbBenchmark.parse(where, benchmark)
    if is_phone:
        return AdbDevice.parse(where)
    if where == "local":
        return LocalDevice()
    if where.startswith(PREFIX):
        return EmulatedDevice.parse(where, say)
    return SshDevice.parse(where, options or SshOptions())

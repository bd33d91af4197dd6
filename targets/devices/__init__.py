"""Where a bundle is measured: every place runs the same probe and answers in one schema."""

from __future__ import annotations

from collections.abc import Callable

from targets.devices.base import Device
from targets.devices.emulated import PREFIX, EmulatedDevice
from targets.devices.local import LocalDevice
from targets.devices.ssh import SshDevice, SshOptions

__all__ = ["Device", "EmulatedDevice", "LocalDevice", "SshDevice", "SshOptions", "open_device"]


def open_device(
    where: str, options: SshOptions | None = None, say: Callable[[str], None] = lambda _: None
) -> Device:
    """Return the device that `where` names; nothing is contacted yet.

    The first use of an emulated core downloads it; `say` hears of it.

    Raises `UsageError` (2) for what names no place, or a host or user that a shell or ssh could misread.
    """
    if where == "local":
        return LocalDevice()
    if where.startswith(PREFIX):
        return EmulatedDevice.parse(where, say)
    return SshDevice.parse(where, options or SshOptions())

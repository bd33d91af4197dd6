"""Where a bundle is measured: every place runs the same probe and answers in one schema."""

from __future__ import annotations

from targets.devices.base import Device
from targets.devices.local import LocalDevice
from targets.devices.ssh import SshDevice, SshOptions

__all__ = ["Device", "LocalDevice", "SshDevice", "SshOptions", "open_device"]


def open_device(where: str, options: SshOptions | None = None) -> Device:
    """Return the device that `where` names; nothing is contacted yet.

    Raises `UsageError` (2) for what names no place, or a host or user that a shell or ssh could misread.
    """
    if where == "local":
        return LocalDevice()
    return SshDevice.parse(where, options or SshOptions())

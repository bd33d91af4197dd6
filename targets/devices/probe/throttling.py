"""Whether the board held its clock back: the bits of `vcgencmd get_throttled`."""

from __future__ import annotations

from targets.devices.probe.events import Json

THROTTLED_NOW = 0xF
THROTTLED_SINCE_BOOT = 0xF0000


def was_throttled(before: Json, after: Json) -> bool | None:
    """Return whether the clock was held back between two states; None where the board cannot say."""
    if before["throttled"] is None or after["throttled"] is None:
        return None
    held = (before["throttled"] | after["throttled"]) & THROTTLED_NOW
    newly = (after["throttled"] & ~before["throttled"]) & THROTTLED_SINCE_BOOT
    return bool(held or newly)

"""What the board says of itself."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from targets.devices.probe.events import Json

VCGENCMD_SECONDS = 5.0


class Board:
    """The device's own figures, read below `root` (`/` but in tests); what it does not tell is None."""

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)
        self._is_mute = False

    def describe(self) -> Json:
        """Return what stays the same during a measurement."""
        cpus = [entry for entry in (self._text("proc/cpuinfo") or "").split("\n\n") if entry.strip()]
        told: dict[str, str] = {}
        for line in (line for entry in cpus for line in entry.splitlines()):
            key, _, value = line.partition(":")
            told.setdefault(key.strip().lower(), value.strip())
        memory = (self._text("proc/meminfo") or "").partition("MemTotal:")[2].split()
        return {
            "board": (self._text("proc/device-tree/model") or "").strip("\0 \n") or android_model(),
            "cpu": told.get("model name") or told.get("cpu part"),
            "cores": os.cpu_count(),
            "features": sorted((told.get("features") or told.get("flags") or "").split()),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "memory_mb": round(int(memory[0]) * 1024 / 1e6) if memory else None,
        }

    def state(self) -> Json:
        """Return what may change from block to block: clock, governor, temperature, throttling."""
        clock = self._number("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        heat = self._number("sys/class/thermal/thermal_zone0/temp")
        return {
            "governor": (self._text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "").strip()
            or None,
            "clock_mhz": None if clock is None else clock / 1e3,
            "temperature_c": None if heat is None else heat / 1e3,
            "throttled": self._throttled(),
            "load": load_average(),
        }

    def _throttled(self) -> int | None:
        """Return the bits of `vcgencmd get_throttled`, or None where there is none; one that hangs is not asked again."""
        command = shutil.which("vcgencmd")
        if command is None or self._is_mute:
            return None
        try:
            child = subprocess.Popen(
                [command, "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            try:
                return int(child.communicate(timeout=VCGENCMD_SECONDS)[0].strip().rpartition("=")[2], 16)
            except subprocess.TimeoutExpired:
                self._is_mute = True
                child.kill()  # and no wait: one that hangs in the firmware's driver cannot be killed
                return None
        except (OSError, ValueError):
            return None

    def _text(self, relative: str) -> str | None:
        try:
            return (self.root / relative).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def _number(self, relative: str) -> float | None:
        try:
            return float((self._text(relative) or "").strip())
        except ValueError:
            return None


def android_model() -> str | None:
    """Return maker and model of an Android phone, None elsewhere."""
    command = shutil.which("getprop")
    if command is None:
        return None
    told = []
    for name in ("manufacturer", "model"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            ran = subprocess.run(
                [command, "ro.product." + name], capture_output=True, text=True, timeout=10, check=False
            )
            told.append(ran.stdout.strip())
    return " ".join(told).strip() or None


def load_average() -> float | None:
    """Return the load of the last minute, None where the system keeps it to itself, as Android does."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None

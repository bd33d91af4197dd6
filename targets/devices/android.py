"""What an Android phone tells of itself over a shell, as text in and figures out; no phone is contacted here."""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

MODERATE = 2
"""The thermal status of Android from which the system holds its clocks back."""
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq"
_MILLI = 1e-3
_LIVE = "Current temperatures from HAL:"
_STATE = {
    "thermal": "dumpsys thermalservice",
    "governor": f"cat {_CPU}/scaling_governor",
    "clock": f"cat {_CPU}/scaling_cur_freq",
    "heat": "cat /sys/class/thermal/thermal_zone0/temp",
    "load": "cat /proc/loadavg",
}
_BOARD = {
    "maker": "getprop ro.product.manufacturer",
    "model": "getprop ro.product.model",
    "chip": "getprop ro.soc.model",
    "release": "getprop ro.build.version.release",
    "machine": "uname -m",
    "kernel": "uname -r",
    "cores": "nproc",
    "memory": "cat /proc/meminfo",
    "cpuinfo": "cat /proc/cpuinfo",
}


def _questions(commands: dict[str, str]) -> str:
    return "; ".join([*(f"echo @{name}; {text} 2>/dev/null" for name, text in commands.items()), "true"])


STATE_COMMAND = _questions(_STATE)
"""Shell text whose output `read_state` reads."""
BOARD_COMMAND = _questions(_BOARD)
"""Shell text whose output `read_board` reads."""


def read_state(text: str) -> Json:
    """Return thermal status (0 to 6), clock in MHz, governor, °C and load; None for what is not told."""
    told = _answers(text, _STATE)
    status = re.search(r"^\s*Thermal Status: ([0-9])\b", told["thermal"], re.MULTILINE)
    clock, governor = _first_number(told["clock"]), told["governor"].strip()
    return {
        "governor": governor if re.fullmatch(r"[a-z_]{1,30}", governor) else None,
        "clock_mhz": None if clock is None else clock * _MILLI,
        "temperature_c": _temperature(told["thermal"], told["heat"]),
        "throttled": None if status is None else int(status[1]),
        "load": _first_number(told["load"]),
    }


def was_hot(before: Json, after: Json) -> bool | None:
    """Return whether Android held the clocks back around a block; None where it told neither time."""
    levels = [state["throttled"] for state in (before, after) if state["throttled"] is not None]
    if any(level >= MODERATE for level in levels):
        return True
    return False if len(levels) == 2 else None


def read_board(text: str) -> Json:
    """Return the phone as the schema describes a board; None for what it does not tell."""
    told = _answers(text, _BOARD)
    line = {name: (told[name].strip().splitlines() or [""])[0].strip()[:100] for name in _BOARD}
    memory = re.search(r"^MemTotal:\s+([0-9]{1,15}) kB", told["memory"], re.MULTILINE)
    features = re.search(r"^(?:Features|flags)\s*:(.*)$", told["cpuinfo"], re.MULTILINE)
    release = f" (Android {line['release']})" if line["release"] else ""
    return {
        "board": f"{line['maker']} {line['model']}".strip() or None,
        "cpu": line["chip"] or None,
        "cores": int(line["cores"]) if re.fullmatch(r"[0-9]{1,4}", line["cores"]) else None,
        "features": sorted(set(features[1].split())) if features else [],
        "machine": line["machine"] or "unknown",
        "kernel": (line["kernel"] or "unknown") + release,
        "python": "not used",
        "memory_mb": round(int(memory[1]) * 1024 / 1e6) if memory else None,
    }


def _answers(text: str, commands: dict[str, str]) -> dict[str, str]:
    """Return what followed each `@name` line; empty for one that is not there."""
    parts = re.split(r"^@([a-z]+)\s*$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: found.get(name, "") for name in commands}


def _temperature(thermal: str, zone: str) -> float | None:
    """Return the hottest CPU sensor as the phone reads it now (its cache may be old), else the first kernel zone."""
    live = thermal.partition(_LIVE)[2] or thermal
    cpu = re.findall(r"\bTemperature\{mValue=([0-9]{1,3}(?:\.[0-9]{1,9})?), mType=0\b", live)
    if cpu:
        return max(float(value) for value in cpu)
    milli = _first_number(zone)
    return None if milli is None else milli * _MILLI


def _first_number(text: str) -> float | None:
    found = re.match(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)", text)
    return None if found is None else float(found[1])

"""How figures are written for people: the unit beside the number, `–` for what was not measured."""

from __future__ import annotations

import math

ABSENT = "–"
_ALMOST_ONE = 0.9995  # what rounds to 1.00 of a unit is written in that unit


def byte_size(size_bytes: float | None) -> str:
    """Return a size as `812 B`, `98.2 kB`, `26.0 MB` or `1.32 GB` (powers of 1000)."""
    if size_bytes is None:
        return ABSENT
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= _ALMOST_ONE * scale:
            return f"{three_digits(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def count(number: float | None) -> str:
    """Return a count as `812`, `98.2 k`, `26.0 M` or `4.11 G`."""
    if number is None:
        return ABSENT
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= _ALMOST_ONE * scale:
            return f"{three_digits(number / scale)} {unit}"
    return f"{number:.0f}"


def three_digits(number: float) -> str:
    """Return `number` with three significant digits and no exponent."""
    if number >= 99.95:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


def times(ratio: float | None) -> str:
    """Return a ratio as `3.6×`."""
    return ABSENT if ratio is None else f"{three_digits(ratio)}×"


def share(part: float | None) -> str:
    """Return a share 0..1 as `98 %`; neither 0 % nor 100 % is claimed for what is only near it."""
    if part is None:
        return ABSENT
    percent = 100.0 * part
    if 0.0 < percent < 1.0:
        return "<1 %"
    if 99.5 <= percent < 100.0:
        return ">99 %"
    return f"{percent:.0f} %"


def decibels(value: float | None) -> str:
    """Return decibels with one decimal, or `exact` where there is no error at all."""
    if value is None:
        return ABSENT
    return "exact" if math.isinf(value) or value >= 200.0 else f"{value:.1f}"


def milliseconds(value: float | None) -> str:
    """Return a time in ms with three significant digits."""
    if value is None:
        return ABSENT
    return three_digits(value) if value >= 1.0 else f"{value:.3f}"


def points(value: float | None) -> str:
    """Return points lost as a signed number: `-0.28` is a loss, `+0.00` none."""
    if value is None:
        return ABSENT
    return f"{-value + 0.0:+.2f}"


def small(value: float | None) -> str:
    """Return a small quantity with two significant digits, or `exact` for zero."""
    if value is None:
        return ABSENT
    return "0" if value == 0 else f"{value:.2g}"


def figure_name(kind: str) -> str:
    """Return a figure's key with its unit set apart: `p50_ms` as `p50 ms`, `sqnr_db` as `SQNR dB`."""
    named = {
        "sqnr_db": "SQNR dB",
        "instructions_m": "instructions M",
        "rss_mb": "RSS MB",
        "size_mb": "size MB",
    }
    return named.get(kind, kind.replace("_", " "))

"""How much memory a process has needed."""

from __future__ import annotations

from pathlib import Path


def peak_rss_mb() -> float | None:
    """Return the most resident memory this process has had; None where the kernel does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    told = status.partition("VmHWM:")[2].split()
    return int(told[0]) * 1024 / 1e6 if told else None

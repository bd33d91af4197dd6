"""The peak of this process's resident memory since a moment of one's choosing (Linux)."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak() -> None:
    """Begin to measure the peak anew, where the system can do that (proc(5): 5 written to clear_refs)."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def peak_rss_mb() -> float:
    """Return the peak resident memory in MB (10^6 bytes) since `restart_peak`, or of the whole process."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

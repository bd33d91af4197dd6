"""Which of several processes this one is, when `accelerate launch` (or torchrun) started more than one.

Framework-free: launchers say it in the environment.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's number among those of the run; 0 for the main one, or the only one."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this process speaks and writes; the others only train along."""
    return rank() == 0

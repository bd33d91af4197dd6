"""How many instructions an inference takes, where an emulator counts them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

COUNTER_MAGIC = 0x45444745
COUNTED_RUNS = (1, 2, 1, 2)


def count(model: Any, feed: Any, path: str) -> list[float]:
    """Return the instructions of one inference, twice: each from two numbers of runs, so that all else subtracts."""
    model.run(feed)
    told = []
    for runs in COUNTED_RUNS:
        before = instructions(path)
        for _ in range(runs):
            model.run(feed)
        told.append(instructions(path) - before)
    return [
        (told[at + 1] - told[at]) / (COUNTED_RUNS[at + 1] - COUNTED_RUNS[at]) for at in range(0, len(told), 2)
    ]


def instructions(path: str) -> int:
    """Return how many instructions this process has executed, as the emulator's counter wrote it to `path`."""
    with contextlib.suppress(OSError):  # it is no such process group; the counter listens to the attempt
        os.getpriority(COUNTER_MAGIC, 0)
    return int.from_bytes(Path(path).read_bytes(), "little")

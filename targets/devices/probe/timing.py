"""How long single inferences take."""

from __future__ import annotations

import time
from typing import Any


def block(model: Any, feed: Any, seconds: float, runs: int) -> list[float]:
    """Return the microseconds of single inferences, for `seconds` or `runs` of them, whichever is later."""
    model.run(feed)  # the others had the caches meanwhile
    clock, run = time.perf_counter_ns, model.run
    times: list[float] = []
    end = clock() + int(seconds * 1e9)
    while len(times) < runs or clock() < end:
        began = clock()
        run(feed)
        times.append((clock() - began) / 1e3)
    return times

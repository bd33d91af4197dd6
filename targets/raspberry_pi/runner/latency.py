"""How long one inference takes here."""

from __future__ import annotations

import time

import numpy as np

from targets.raspberry_pi.runner.bundle import Json, golden_tensor
from targets.raspberry_pi.runner.inference import by_signature
from targets.raspberry_pi.runner.session import Session

WARM_UP_RUNS = 3


def measure(model: Session, entry: Json, golden: Json, runs: int, threads: int) -> Json:
    """Return p50 and p90 of single inferences on the first golden sample, in milliseconds."""
    sample = golden["samples"][0]
    tensors = {name: golden_tensor(file) for name, file in sample["inputs"].items()}
    ordered = by_signature(model.signature()[0], [spec["name"] for spec in entry["inputs"]], tensors)
    for _ in range(WARM_UP_RUNS):
        model.run(ordered)
    times = []
    for _ in range(runs):
        begin = time.perf_counter_ns()
        model.run(ordered)
        times.append((time.perf_counter_ns() - begin) / 1e6)
    p50, p90 = np.percentile(times, (50, 90))
    return {"p50_ms": round(float(p50), 4), "p90_ms": round(float(p90), 4), "runs": runs, "threads": threads}

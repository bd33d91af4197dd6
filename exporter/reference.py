"""What the float model answers: the yardstick that every artifact of a build is held against."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.artifacts import Latency
from exporter.metrics import Metric
from exporter.runtimes.worker import RunRecord


@dataclass(frozen=True, slots=True)
class Reference:
    """The float model's answers: folders of inputs and outputs, and the edge inputs with theirs.

    `metric` is `None` when the recipe gives neither a metric nor labels; agreement then stands alone.
    """

    inputs: Path
    outputs: Path
    edge_inputs: Path
    edge_outputs: Path
    edge_names: tuple[str, ...]
    metric_name: str | None
    metric: Metric | None
    labels: np.ndarray | None
    score: float | None
    record: RunRecord


def latency_of(record: RunRecord) -> Latency | None:
    """Return the host latency that a run measured, or `None` if it was not timed."""
    if not record.timings_ms:
        return None
    p50, p90 = np.percentile(record.timings_ms, [50, 90])
    host = f"{platform.machine()} host, {record.runtime}"
    return Latency(float(p50), float(p90), len(record.timings_ms), 1, host)

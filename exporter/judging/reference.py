"""What the float model answers: the yardstick that every artifact of a build is held against."""

from __future__ import annotations

import itertools
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.arrays import Sample
from exporter.artifacts import Latency
from exporter.bundle.golden import GoldenInputs
from exporter.errors import GateError
from exporter.judging.metrics import Metric
from exporter.runtimes.worker import RunRecord, read_samples


@dataclass(frozen=True, slots=True)
class Reference:
    """The float model's answers: folders of inputs and outputs, and those of what data does not hold.

    The extra inputs are the edge cases, called `edge_names`, and after them the samples of `golden`. What an artifact
    answers to the latter is kept in `golden_answers / FILE`. `metric` is `None` when the recipe gives neither a metric
    nor labels; agreement then stands alone.
    """

    inputs: Path
    outputs: Path
    extra_inputs: Path
    extra_outputs: Path
    edge_names: tuple[str, ...]
    golden: GoldenInputs
    golden_answers: Path
    metric_name: str | None
    metric: Metric | None
    labels: np.ndarray | None
    score: float | None
    record: RunRecord

    def golden_wanted(self) -> list[Sample]:
        """Return the float model's answers to the golden samples."""
        return list(itertools.islice(read_samples(self.extra_outputs), len(self.edge_names), None))


def as_reference(answer: Sample, want: Sample) -> dict[str, np.ndarray]:
    """Return `answer` under the reference's output names: by name where they agree, by position otherwise.

    Raises `GateError` for another number of outputs.
    """
    if set(answer) == set(want):
        return {name: answer[name].reshape(want[name].shape) for name in want}
    if len(answer) != len(want):
        raise GateError(
            f"the artifact has {len(answer)} outputs ({', '.join(answer)}), the float model {len(want)}",
            fix="report this model as a bug",
        )
    return {name: value.reshape(want[name].shape) for name, value in zip(want, answer.values(), strict=True)}


def latency_of(record: RunRecord) -> Latency | None:
    """Return the host latency that a run measured, or `None` if it was not timed."""
    if not record.timings_ms:
        return None
    p50, p90 = np.percentile(record.timings_ms, [50, 90])
    host = f"{platform.machine()} host, {record.runtime}"
    return Latency(float(p50), float(p90), len(record.timings_ms), 1, host)

"""What judges a model: samples, and with labels the recipe's metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.judging.metrics import Metric


@dataclass(frozen=True, slots=True)
class Judging:
    """What scores a model: samples (re-iterable), their labels, and the recipe's metric with its name."""

    samples: Iterable[Mapping[str, np.ndarray]]
    labels: np.ndarray | None = None
    metric_name: str | None = None
    metric: Metric | None = None

    def score(self, answers: Sequence[Mapping[str, np.ndarray]]) -> float | None:
        """Return the metric of `answers`, one for each sample; `None` without a metric or without labels."""
        if self.metric is None or self.labels is None:
            return None
        return self.metric(answers, self.labels)

    @property
    def scores(self) -> bool:
        """Whether there is a metric and what it needs."""
        return self.metric is not None and self.labels is not None

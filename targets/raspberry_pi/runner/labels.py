"""What the highest scores mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from targets.raspberry_pi.runner.bundle import Json

TOP_LABELS = 5


class Prediction(NamedTuple):
    """One label with the model's own score for it (a logit or a probability, as the model was trained)."""

    label: str
    score: float


def top_labels(scores: np.ndarray, labels: list[str], top: int = TOP_LABELS) -> list[Json]:
    """Return the highest scores of the first sample with their labels (or class numbers), best first."""
    row = scores.reshape(scores.shape[0], -1)[0] if scores.ndim > 1 else scores.reshape(-1)
    best = np.argsort(-row.astype(np.float64), kind="stable")[:top]
    return [
        {
            "label": labels[index] if index < len(labels) else str(index),
            "index": int(index),
            "score": float(row[index]),
        }
        for index in best
    ]

"""What a training reports of itself. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """One training: metric (or, without labels, minus the loss) on validation before, at its best, and at the end.

    `stopped` says why it ended: "all epochs", "no better for N epochs", or "the user's function". `losses` are
    mean training losses by epoch. `processes` is how many took part.
    """

    metric: str
    before: float
    best: float
    best_epoch: int
    epochs: int
    losses: tuple[float, ...]
    stopped: str
    seconds: float
    resumed: bool
    processes: int

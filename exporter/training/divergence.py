"""What is left, and what to say, when a loss is no longer a number."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import GateError
from exporter.recipe.compression import TrainingTable
from exporter.training.checkpoint import checkpoints


def last_good(folder: Path, steps: int, *, remove: bool) -> Path | None:
    """Return the newest checkpoint older than the weights after `steps` steps, which gave no number.

    One that holds those very weights is no good one; it goes where `remove` says so.
    """
    found = [(int(path.name.split("-")[1]), path) for path in checkpoints(folder)]
    for number, path in found:
        if number >= steps and remove:
            path.unlink(missing_ok=True)
    return next((path for number, path in found if number < steps), None)


def diverged(what: str, table: TrainingTable, kept: Path | None) -> GateError:
    """Return the error that says `what` happened, what was kept, and what to lower."""
    where = f"the last good checkpoint is {kept}" if kept else "no checkpoint had been written yet"
    clip = "" if table.clip_norm is not None else ", or set training.clip_norm = 1.0"
    return GateError(
        f"{what}; {where}",
        fix=f"lower training.learning_rate to {table.learning_rate / 10:.2g}{clip}",
        details={
            "learning_rate": table.learning_rate,
            "checkpoint": None if kept is None else str(kept),
        },
    )

"""What the recipe shows the network: dictionaries of arrays, one a sample. A real one reads your recordings here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "exporter" / "demo" / "audio"


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """Yield log-mel pictures `[1, 20, 40]` of the training split."""
    with np.load(DATA / "calibration.npz") as found:
        for mel in found["mel"]:
            yield {"mel": mel[None]}


def evaluation() -> Iterator[dict[str, np.ndarray]]:
    """Yield 200 other pictures with the number of the word as `label`."""
    with np.load(DATA / "evaluation.npz") as found:
        for mel, label in zip(found["mel"][:200], found["label"][:200], strict=True):
            yield {"mel": mel[None], "label": label}

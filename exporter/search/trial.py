"""The nouns of a search: what a trial measures, what evaluates one, and what ends one early.

Knows neither Optuna nor torch: whatever implements `Evaluate` can be searched over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from exporter.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrialFigures:
    """What one variant's artifact measured. Sizes are bytes, `latency_ms` the median on this host, one thread.

    `metric` is the recipe's metric on the data that chooses, `None` for an artifact that was only screened (its
    weights are untrained); `download_bytes` is the size after deflate; `device` holds what the user's `measure`
    returned.
    """

    size_bytes: int
    download_bytes: int
    latency_ms: float
    macs: int
    parameters: int
    metric: float | None = None
    device: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """One objective: the recipe's name for it, whether more is better, and how people call it, with its unit."""

    name: str
    maximize: bool
    label: str

    def value(self, figures: TrialFigures) -> float:
        """Return this objective's value in `figures`; `KeyError` for a device figure that is not there."""
        if self.name.startswith("device:"):
            return float(figures.device[self.name.removeprefix("device:")])
        attribute = _ATTRIBUTES[self.name]
        value = getattr(figures, attribute)
        if value is None:
            raise KeyError(self.name)
        return float(value)


_ATTRIBUTES = {
    "metric": "metric",
    "size": "size_bytes",
    "download": "download_bytes",
    "latency": "latency_ms",
    "macs": "macs",
    "parameters": "parameters",
}
_LABELS = {
    "size": "size (bytes)",
    "download": "download (bytes)",
    "latency": "latency p50 (ms)",
    "macs": "MACs",
    "parameters": "parameters",
}


def goals_of(objectives: tuple[str, ...], metric_name: str | None) -> tuple[Goal, ...]:
    """Return the goals that `[tune] objectives` spells; `metric_name` is what the recipe's metric is called."""
    goals = []
    for text in objectives:
        name, _, direction = text.partition(" ")
        label = (metric_name or "agreement") if name == "metric" else _LABELS.get(name, name)
        goals.append(Goal(name, name == "metric" or direction == "max", label))
    return tuple(goals)


class TrialStopped(Exception):
    """A trial that is not worth finishing, with the reason. It is no failure, and nobody meets it as an error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Report = Callable[[float], None]
"""Called with the validation metric after each epoch; raises `TrialStopped` when the trial should end."""


class Evaluate(Protocol):
    """What measures a variant of the recipe. All methods may use `folder` as scratch and raise any `EdgeError`."""

    def original(self, folder: Path) -> TrialFigures:
        """Return the figures of the recipe's model as it was loaded, uncompressed, in float."""

    def compare_with(self, original: TrialFigures) -> None:
        """Learn what `original` returned when the study began, so that latencies of all trials compare."""

    def screen(self, recipe: Recipe, folder: Path) -> TrialFigures | None:
        """Return the figures that `recipe`'s artifact has whatever its weights, without training.

        `None` where nothing would be saved, because nothing in `recipe` trains, or nothing could end its training.
        """

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
        """Return the figures of `recipe`'s artifact; `report` hears every validation on the way."""


Values = Mapping[str, Any]
"""Values of searched keys, by the path of the key."""

"""`[tune]`: what a recipe says about searching for better values of its own keys.

Framework-free data, like `exporter.recipe.compression`. Which keys exist is not known here: `exporter.search.space`
holds a space against the recipe it belongs to.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from exporter.recipe.compression import Callable_, Table

MEASURED_OBJECTIVES = ("metric", "size", "download", "latency", "macs", "parameters")
SEARCHABLE_TABLES = ("compress", "training", "quantize")
"""Where a search may change things: elsewhere it would change the question instead of the answer."""
_DEVICE_OBJECTIVE = re.compile(r"device:[A-Za-z_][A-Za-z0-9_.]*( (min|max))?")
_ARTIFACT = re.compile(r"(onnx|ort|tflite)(:[a-z0-9_]+)?(@fixed)?")
_KEY = re.compile(r"[a-z_]+(\.[A-Za-z0-9_]+)+")
Number = Annotated[int, Field(strict=True)] | Annotated[float, Field(allow_inf_nan=False)]


class KnobTable(Table):
    """One key's values: `low` to `high` (with `step`, or `log = true`), or `choices`, or a plain list of those.

    Whole numbers for `low` and `high` make a whole-number key. `choices` may hold anything the key itself may:
    lists of patterns for `quantize.keep`, and whole step tables (or `false`: leave the step out) for `compress.N`.
    """

    low: Number | None = None
    high: Number | None = None
    step: Number | None = Field(default=None, gt=0)
    log: bool = False
    choices: tuple[Any, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _list_is_choices(cls, given: Any) -> Any:
        return {"choices": given} if isinstance(given, list | tuple) else given

    @model_validator(mode="after")
    def _one_kind(self) -> KnobTable:
        bounds = self.low, self.high
        if self.choices is not None:
            if bounds != (None, None) or self.step is not None or self.log:
                raise ValueError("choices stand alone: leave out low, high, step and log")
            if not self.choices:
                raise ValueError("choices is empty: give at least one value")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices = […]")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError("log = true wants low above 0 and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the key takes whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)


class ConstraintsTable(Table):
    """`[tune.constraints]`: limits of a point worth having; a trial known to break one is not trained.

    Sizes are 10^6 bytes of the artifact, latencies the median in milliseconds on this host with one thread,
    `max_mmacs` 10^6 multiply-accumulates of one inference, `min_metric` in the metric's own unit.
    """

    max_size_mb: float | None = Field(default=None, gt=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_mmacs: float | None = Field(default=None, gt=0)
    min_metric: float | None = None


class ArchitectureTable(Table):
    """`[tune.architecture]`: find width, depth and kernel of a student under a latency budget.

    The recipe's `student` step is what is searched (with `family`, if that is given here), and the `distill` step
    after it what trains it. Candidates are the combinations of `width` × `depth` × `kernel` × `options` (each of
    the family's own options with its choices). One whose artifact, made of random weights, takes more than
    `latency_ms` on this host is rejected without training. The others are trained for `epochs[0]` epochs; of each
    rung the best 1/`keep_one_in` for the next number of epochs.
    """

    family: str | None = None
    latency_ms: float = Field(gt=0)
    width: tuple[Annotated[float, Field(gt=0, le=4)], ...] = (0.5, 0.75, 1.0)
    depth: tuple[Annotated[float, Field(gt=0, le=4)], ...] = (1.0,)
    kernel: tuple[Annotated[int, Field(ge=1)], ...] = ()
    options: Mapping[str, tuple[Any, ...]] = {}
    epochs: tuple[Annotated[int, Field(ge=1)], ...] = (2, 6, 18)
    keep_one_in: int = Field(default=3, ge=2)

    @model_validator(mode="after")
    def _rungs_rise(self) -> ArchitectureTable:
        if not self.width or not self.depth or not self.epochs:
            raise ValueError("width, depth and epochs need at least one value each")
        if any(later <= earlier for earlier, later in itertools.pairwise(self.epochs)):
            raise ValueError("epochs must rise from rung to rung, like [2, 6, 18]")
        if self.kernel and "kernel" in self.options:
            raise ValueError("give kernel once: as kernel = […] or in options")
        return self


class TuneTable(Table):
    """`[tune]`: the objectives of a search, its space, and what a point must hold.

    `objectives` are `metric` (higher is better), `size` and `download` (bytes of the artifact, and after deflate),
    `latency` (median on this host), `macs`, `parameters`, or `device:NAME` (`device:NAME max`): the figure NAME in
    what `measure`, the user's `f(path) -> dict of floats`, returns for the artifact. `artifact` says which file is
    judged: a format, which takes `quantize.scheme`, or one spelled out like `onnx:static_wi8_ai8@fixed`.
    `space` maps keys of the recipe by their path (`compress.0.ratio`) to their values; `architecture` searches a
    catalogue family instead. `early_stop` ends a trial whose validation is below the median of others of about
    its size, from `patience` validations on.
    """

    objectives: tuple[str, ...] = Field(default=("metric", "size"), min_length=1, max_length=4)
    space: Mapping[str, KnobTable] = {}
    architecture: ArchitectureTable | None = None
    constraints: ConstraintsTable = ConstraintsTable()
    artifact: str = "onnx"
    measure: Callable_ | None = None
    early_stop: bool = True
    patience: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("objectives")
    @classmethod
    def _objectives_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in MEASURED_OBJECTIVES and not _DEVICE_OBJECTIVE.fullmatch(name):
                known = ", ".join(MEASURED_OBJECTIVES)
                raise ValueError(
                    f"no objective is called {name!r}; use {known}, or device:NAME (device:NAME max)"
                )
        names = [name.partition(" ")[0] for name in value]
        if len(set(names)) != len(names):
            raise ValueError("an objective is named twice")
        return value

    @field_validator("artifact")
    @classmethod
    def _artifact_runs_here(cls, value: str) -> str:
        if not _ARTIFACT.fullmatch(value):
            raise ValueError(
                f"{value!r} is not an artifact that this host can run: write onnx, ort or tflite, or one spelled "
                "out like onnx:static_wi8_ai8@fixed"
            )
        return value

    @field_validator("space")
    @classmethod
    def _keys_are_searchable(cls, value: Mapping[str, KnobTable]) -> Mapping[str, KnobTable]:
        for key in value:
            if not _KEY.fullmatch(key) or key.partition(".")[0] not in SEARCHABLE_TABLES:
                raise ValueError(
                    f"{key!r} cannot be searched: write the path of a key in {', '.join(SEARCHABLE_TABLES)}, in "
                    'quotes, like "compress.0.ratio"'
                )
            inside = next((other for other in value if other.startswith(f"{key}.")), None)
            if inside is not None:
                raise ValueError(f"{key!r} and {inside!r} are searched both, and one holds the other")
        return value

    @model_validator(mode="after")
    def _one_search(self) -> TuneTable:
        if bool(self.space) == (self.architecture is not None):
            raise ValueError("give either [tune.space] with at least one key, or [tune.architecture]")
        if any(name.startswith("device:") for name in self.objectives) and self.measure is None:
            raise ValueError(
                'a device: objective needs measure = "file.py:callable", which returns its figures'
            )
        if self.architecture is not None and "metric" not in self.objectives:
            raise ValueError("an architecture search ranks by the metric: name it among the objectives")
        return self

    @property
    def limits(self) -> ConstraintsTable:
        """What a point must hold: the constraints, and an architecture's latency budget."""
        budgets = [self.constraints.max_latency_ms]
        if self.architecture is not None:
            budgets.append(self.architecture.latency_ms)
        given = [budget for budget in budgets if budget is not None]
        return self.constraints.model_copy(update={"max_latency_ms": min(given, default=None)})

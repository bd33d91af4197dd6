"""`[training]` and `[[compress]]`: what a recipe says about making a model smaller before it is exported.

Framework-free data. One frozen table per method; the *type* of a table selects the code that handles it
(`exporter.compress.steps`). Paths and callables are as the recipe has them: relative to its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

_CALLABLE = r"^[^:]+:[A-Za-z_][A-Za-z0-9_.]*$"
Callable_ = Annotated[str, Field(pattern=_CALLABLE)]
"""`file.py:callable` or `package.module:callable`."""
Share = Annotated[float, Field(gt=0, lt=1)]


class Table(BaseModel):
    """A frozen table of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingTable(Table):
    """`[training]`: how every training of the recipe runs; a step's `train = {…}` overrides single keys.

    `epochs` are passes over `data.training`. `loss` is `auto` (cross-entropy for integer labels, mean
    squared error for others), or the user's `f(outputs, labels) -> scalar tensor`. `teacher` is the share
    of the loss that comes from imitating the model as the recipe loaded it (soft targets at `temperature`,
    Hinton et al. 2015); without labels it is all of it. `train = false` in a step leaves the change
    untrained. `augment` is the user's `f(inputs, generator) -> inputs` on dicts of batched tensors.
    `patience` are epochs without a better validation metric before training stops; `accumulate` the batches
    per optimiser step. `checkpoint_seconds` is the least time between two checkpoints inside an epoch; one
    is written at the end of every epoch regardless. `function` replaces the whole loop.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    loss: Literal["auto", "cross_entropy", "mse"] | Callable_ = "auto"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    teacher: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    augment: Callable_ | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    accumulate: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    seed: int = Field(default=0, ge=0)
    function: Callable_ | None = None

    def overridden_by(self, step: TrainingTable) -> TrainingTable:
        """Return this table with the keys that `step` sets itself."""
        return self.model_copy(update={name: getattr(step, name) for name in step.model_fields_set})


def _false_is_none(value: object) -> object:
    return None if value is False else value


def _say_false(schema: dict[str, Any]) -> None:
    """TOML has no null: editors are told of `false`."""
    schema["anyOf"] = [{"const": False} if form == {"type": "null"} else form for form in schema["anyOf"]]


Trained = Annotated[
    TrainingTable | None, BeforeValidator(_false_is_none), Field(json_schema_extra=_say_false)
]
"""How a step trains, or `train = false`."""

_PRUNE_GOALS = ("ratio", "remove_macs", "remove_parameters", "size_mb", "latency_ms", "history")


class PruneTable(Table):
    """`method = "prune"`: remove whole channels, hidden units and heads.

    Exactly one goal: `ratio` (share of channels removed), `remove_macs` / `remove_parameters` (share of the
    model's), `size_mb` (10^6 bytes of the exported float ONNX), `latency_ms` (median of the exported ONNX on
    this host, one thread), or `history` (a stored pruning history, replayed). `importance` decides what goes;
    `scope` whether channels compete across the network or each layer gives the same share. Channel counts stay
    multiples of `round_to`. `skip` are glob patterns of module names that keep their outputs; `attention` says
    whether heads go whole, every head becomes narrower, or both stay. `rounds` prunes in that many steps with
    a training after each.
    """

    method: Literal["prune"] = "prune"
    ratio: Share | None = None
    remove_macs: Share | None = None
    remove_parameters: Share | None = None
    size_mb: float | None = Field(default=None, gt=0)
    latency_ms: float | None = Field(default=None, gt=0)
    history: Path | None = None
    importance: Literal["magnitude", "taylor", "bn_scale", "activation"] = "magnitude"
    scope: Literal["global", "layer"] = "global"
    round_to: int = Field(default=8, ge=1)
    max_layer_ratio: float = Field(default=0.9, gt=0, lt=1)
    attention: Literal["heads", "width", "keep"] = "heads"
    skip: tuple[str, ...] = ()
    rounds: int = Field(default=1, ge=1)
    train: Trained = TrainingTable()

    @model_validator(mode="after")
    def _one_goal(self) -> PruneTable:
        given = [name for name in _PRUNE_GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"prune wants exactly one goal of {', '.join(_PRUNE_GOALS)}; it has {len(given)}"
            )
        return self


class SparsifyTable(Table):
    """`method = "sparsify"`: set single weights to zero, for good.

    `sparsity` is the share of zeros (smallest magnitudes first), over the whole network or in each layer
    (`scope`); `pattern = "N:M"` instead keeps the N largest of every M neighbours along the input axis.
    `gradual` ramps sparsity up during training (Zhu and Gupta 2017); otherwise it is set at once and trained
    after. `skip` are glob patterns of module names.
    """

    method: Literal["sparsify"] = "sparsify"
    sparsity: Share | None = None
    pattern: str | None = Field(default=None, pattern=r"^[1-9][0-9]*:[1-9][0-9]*$")
    scope: Literal["global", "layer"] = "global"
    gradual: bool = True
    skip: tuple[str, ...] = ()
    train: Trained = TrainingTable()

    @model_validator(mode="after")
    def _one_goal(self) -> SparsifyTable:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError('sparsify wants either sparsity = 0.8 or pattern = "2:4"')
        if self.pattern is not None:
            kept, group = map(int, self.pattern.split(":"))
            if kept >= group:
                raise ValueError("pattern N:M keeps N of every M weights, so N is smaller than M")
        return self


class FactorizeTable(Table):
    """`method = "factorize"`: replace linear and convolution layers by two thinner ones (truncated SVD).

    Exactly one budget: `max_error` (each layer's relative Frobenius error, 0..1), or `remove_parameters` (share
    of the model's, spent where it costs least error), or `size_mb` (10^6 bytes of the exported float ONNX).
    A layer whose two factors would not be smaller stays whole. Ranks are multiples of `round_to`.
    """

    method: Literal["factorize"] = "factorize"
    max_error: Share | None = None
    remove_parameters: Share | None = None
    size_mb: float | None = Field(default=None, gt=0)
    round_to: int = Field(default=8, ge=1)
    skip: tuple[str, ...] = ()
    train: Trained = TrainingTable()

    @model_validator(mode="after")
    def _one_goal(self) -> FactorizeTable:
        if sum(goal is not None for goal in (self.max_error, self.remove_parameters, self.size_mb)) != 1:
            raise ValueError("factorize wants exactly one of max_error, remove_parameters, size_mb")
        return self


class StudentTable(Table):
    """`method = "student"`: go on with a small network from the catalogue, or a factory, in place of the model.

    `family` is a name that `edge-export students` lists; `width` and `depth` scale it; `options` are the
    family's own. `weights` is a state_dict to start from. A student without weights must be trained: by
    `train` here on labels, or by a `distill` step that follows.
    """

    method: Literal["student"] = "student"
    family: str | None = None
    factory: Callable_ | None = None
    width: float = Field(default=1.0, gt=0, le=4)
    depth: float = Field(default=1.0, gt=0, le=4)
    options: Mapping[str, Any] = {}
    weights: Path | None = None
    train: Trained = None

    @model_validator(mode="after")
    def _one_origin(self) -> StudentTable:
        if (self.family is None) == (self.factory is None):
            raise ValueError(
                'give either family = "…" (edge-export students lists them) or factory = "file.py:callable"'
            )
        return self


class DistillTable(Table):
    """`method = "distill"`: the model as it is now learns from a teacher.

    The teacher is the model as the recipe loaded it, or `teacher` (a factory, with `teacher_weights`). Loss =
    `hard` · task loss (labelled data only) + `soft` · soft targets at `temperature` (Hinton et al. 2015) +
    `feature` · matching of hidden features through learned projections (Romero et al. 2015) + `attention` ·
    matching of attention maps (Zagoruyko and Komodakis 2017) + `relation` · distances and angles between
    embeddings (Park et al. 2019). `layers` maps student module names to teacher module names for the last
    three; empty: found automatically.
    """

    method: Literal["distill"] = "distill"
    teacher: Callable_ | None = None
    teacher_weights: Path | None = None
    hard: float = Field(default=0.5, ge=0)
    soft: float = Field(default=0.5, ge=0)
    feature: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)
    relation: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=4.0, gt=0)
    layers: Mapping[str, str] = {}
    train: TrainingTable = TrainingTable()

    @model_validator(mode="after")
    def _some_loss(self) -> DistillTable:
        if not self.soft + self.feature + self.attention + self.relation:
            raise ValueError("distill wants at least one of soft, feature, attention, relation above 0")
        if self.teacher_weights is not None and self.teacher is None:
            raise ValueError("teacher_weights go with a teacher factory")
        return self


class QatTable(Table):
    """`method = "qat"`: train with the rounding of the exported integer graph in the forward pass.

    `scheme` defaults to `[quantize] scheme`. With `learn_ranges` activation scales are trained too (LSQ, Esser
    et al. 2020); otherwise they stay as calibration set them. It trains at a tenth of the recipe's learning rate
    unless the step sets its own. It must be the last step: whatever changes the model afterwards undoes it.
    """

    method: Literal["qat"] = "qat"
    scheme: str | None = None
    learn_ranges: bool = True
    train: TrainingTable = TrainingTable()

    @field_validator("scheme")
    @classmethod
    def _scheme_has_integers(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"static_wi8_ai8|weight_only_wi[48]", value):
            raise ValueError(
                "qat trains for static_wi8_ai8, static_wi8_ai8_u or weight_only_wi4_b32 (b64, b128)"
            )
        return value


CompressTable = Annotated[
    PruneTable | SparsifyTable | FactorizeTable | StudentTable | DistillTable | QatTable,
    Field(discriminator="method"),
]
METHODS: Mapping[str, type[Table]] = {
    "prune": PruneTable,
    "sparsify": SparsifyTable,
    "factorize": FactorizeTable,
    "student": StudentTable,
    "distill": DistillTable,
    "qat": QatTable,
}


def training_of(step: CompressTable, defaults: TrainingTable) -> TrainingTable | None:
    """Return how `step` trains: `[training]` with the step's own keys over it; `None` for `train = false`."""
    if step.train is None:
        return None
    table = defaults.overridden_by(step.train)
    if isinstance(step, QatTable) and "learning_rate" not in step.train.model_fields_set:
        table = table.model_copy(update={"learning_rate": table.learning_rate / 10})
    return table

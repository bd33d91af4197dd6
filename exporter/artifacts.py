"""The nouns that travel through a build: tensor specs, artifacts, coverage and evidence.

Framework-free and frozen: stages pass these on, targets and reports read them, nothing changes them.
Sizes are bytes (MB in text is 10^6 bytes), times are milliseconds unless the name says seconds,
drops are points of the metric (a top-1 of 0.985 against 0.990 is a drop of 0.5 points).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.schemes import Scheme


class Format(StrEnum):
    """The file formats an artifact can have."""

    ONNX = "onnx"
    ORT = "ort"
    TFLITE = "tflite"
    MLPACKAGE = "mlpackage"

    @property
    def needs_torch(self) -> bool:
        """Whether the format is converted from the torch module rather than from the ONNX graph."""
        return self in {Format.TFLITE, Format.MLPACKAGE}

    @property
    def extra(self) -> str | None:
        """The extra of this distribution that brings the format's converter; `None` where nothing more is needed."""
        return {Format.TFLITE: "litert", Format.MLPACKAGE: "coreml"}.get(self)


class Shapes(StrEnum):
    """Whether named axes stay symbolic in a file or are fixed to the recipe's sizes."""

    DYNAMIC = "dynamic"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one model input or output; a `str` axis is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def fixed(self, axes: Mapping[str, int]) -> TensorSpec:
        """Return this spec with every named axis replaced by its size in `axes`."""
        return dataclasses.replace(
            self, shape=tuple(axes[axis] if isinstance(axis, str) else axis for axis in self.shape)
        )


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """What to make: format × scheme, and for ONNX-born formats whether named axes are fixed.

    Spelled `onnx:static_wi8_ai8`, `onnx:float32@fixed`, `tflite:float16`,
    `mlpackage:weight_only_wi4_b32`. `.tflite` and `.mlpackage` are always of fixed shape.
    """

    format: Format
    scheme: Scheme
    shapes: Shapes = Shapes.DYNAMIC

    @classmethod
    def parse(cls, text: str) -> ArtifactSpec:
        """Return the spec that `text` spells; `UsageError` says which part is wrong."""
        body, _, suffix = text.partition("@")
        name, colon, scheme = body.partition(":")
        formats = [member.value for member in Format]
        if not colon or name not in formats:
            raise UsageError(
                f"artifact {text!r} is not FORMAT:SCHEME",
                fix=f"write for example onnx:static_wi8_ai8; formats are {', '.join(formats)}",
            )
        if suffix not in {"", "fixed", "dynamic"}:
            raise UsageError(
                f"artifact {text!r} ends in @{suffix}", fix="end it in @fixed, or leave the suffix out"
            )
        kind = Format(name)
        if kind.needs_torch and suffix == "dynamic":
            raise UsageError(f"artifact {text!r}: .{name} files have fixed shapes", fix="drop @dynamic")
        shapes = Shapes.FIXED if kind.needs_torch or suffix == "fixed" else Shapes.DYNAMIC
        return cls(kind, Scheme.parse(scheme), shapes)

    @property
    def stem_suffix(self) -> str:
        """The part of a file's stem that tells this artifact from its siblings."""
        fixed = "-fixed" if self.shapes is Shapes.FIXED and not self.format.needs_torch else ""
        return f"{self.scheme}{fixed}"

    def file_name(self, model_name: str) -> str:
        """Return the file (or `.mlpackage` folder) name of this artifact of `model_name`."""
        return f"{model_name}-{self.stem_suffix}.{self.format}"

    def __str__(self) -> str:
        fixed = "@fixed" if self.shapes is Shapes.FIXED and not self.format.needs_torch else ""
        return f"{self.format}:{self.scheme}{fixed}"


@dataclass(frozen=True, slots=True)
class LayerCoverage:
    """What became of one operator that computes on float tensors.

    `macs` are multiply-accumulates of one sample (0 where the operator has none or shapes are unknown),
    `weight_bytes` the float32 size of the constants it owns, `reason` why it stayed float (empty if not).
    """

    name: str
    op: str
    quantized: bool
    macs: int = 0
    weight_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which operators of an artifact are quantised, and what share of the work they carry."""

    layers: tuple[LayerCoverage, ...]

    @property
    def quantized_count(self) -> int:
        """Number of quantised operators."""
        return sum(layer.quantized for layer in self.layers)

    @property
    def mac_share(self) -> float:
        """Share of all multiply-accumulates in quantised operators, 0..1 (0 if there are none)."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.quantized) / total if total else 0.0

    @property
    def weight_share(self) -> float:
        """Share of all float weight bytes that belong to quantised operators, 0..1 (0 if there are none)."""
        total = sum(layer.weight_bytes for layer in self.layers)
        return sum(layer.weight_bytes for layer in self.layers if layer.quantized) / total if total else 0.0

    def reasons(self) -> dict[str, int]:
        """Return how many operators stayed float for each reason, most frequent first."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            if not layer.quantized:
                counts[f"{layer.op}: {layer.reason}"] = counts.get(f"{layer.op}: {layer.reason}", 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file (or `.mlpackage` folder) made by a format's producer.

    `path` is the file, `sha256` its digest (of a folder: the digest of its sorted entries' digests),
    `companions` are files that belong with it (an `.ort`'s `required_operators.config`),
    `notes` are sentences a reader of the report needs ("int8 is larger than …, because …").
    """

    spec: ArtifactSpec
    path: Path
    size_bytes: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    coverage: Coverage
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close an artifact's outputs are to the float model's, over `samples` evaluation samples.

    `sqnr_db` is 10·log10(Σ reference² / Σ error²) over all outputs and samples; `agreement` is the share
    of samples whose arg-max of the first output is the float model's (`None` if it has no class axis).
    """

    sqnr_db: float
    cosine: float
    max_abs_error: float
    agreement: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Points lost (100 × difference of the metric; negative when better), with a 95 % confidence interval."""

    points: float
    low: float
    high: float
    samples: int

    @property
    def is_noise(self) -> bool:
        """Whether these samples cannot tell the loss from none at all."""
        return self.low <= 0.0

    def plus(self, points: float) -> Drop:
        """Return the drop from something `points` above what this one was measured against."""
        return Drop(self.points + points, self.low + points, self.high + points, self.samples)


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The user's metric on the float model and on the artifact; `drop` in points (100 × difference).

    `interval` says how sure the drop is (`None` where it was not paired).
    """

    metric: str
    reference: float
    value: float
    interval: Drop | None = None

    @property
    def drop(self) -> float:
        """Points lost against the float model (negative when the artifact scores higher)."""
        return 100.0 * (self.reference - self.value)


@dataclass(frozen=True, slots=True)
class EdgeCase:
    """Behaviour on an input that evaluation data does not hold (zeros, extremes, larger batch)."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Host latency of one inference at batch 1: never a device's latency, and labelled as the host's."""

    p50_ms: float
    p90_ms: float
    runs: int
    threads: int
    host: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured about one artifact in this build; what was not measured is `None`, with the reason.

    `runtime` names what executed the shipped bytes; `not_run` says why nothing could, and then
    `structure` holds what was checked instead. `disagreement` is the share of classes that changed, with its interval.
    """

    artifact: ArtifactSpec
    runtime: str | None = None
    runtime_version: str | None = None
    not_run: str | None = None
    fidelity: Fidelity | None = None
    task: TaskScore | None = None
    disagreement: Drop | None = None
    edge_cases: tuple[EdgeCase, ...] = ()
    latency: Latency | None = None
    peak_rss_mb: float | None = None
    structure: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A float model as its exported ONNX file shows it.

    `parameters` counts floating-point constants, `macs` multiply-accumulates of one inference, `size_bytes` the
    file, `download_bytes` the file after deflate, `zero_share` the share of parameters that are exactly 0,
    `p50_ms` the host's single-thread median; `score` is the recipe's metric on the evaluation data.
    """

    parameters: int
    macs: int
    size_bytes: int
    download_bytes: int
    zero_share: float
    p50_ms: float | None
    metric: str | None
    score: float | None


@dataclass(frozen=True, slots=True)
class CompressionStep:
    """What one `[[compress]]` step did: figures before it, after the change, and after training.

    `changed` is `None` where the change and the training are one. `original` are the figures of the model as it
    was loaded, for the cumulative view. `seconds` is wall time, `peak_rss_mb` the process's peak during the step.
    """

    method: str
    settings: Mapping[str, Any]
    original: ModelFigures
    before: ModelFigures
    changed: ModelFigures | None
    after: ModelFigures
    trainings: tuple[Mapping[str, Any], ...]
    details: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder: what was tried for a scheme, and what it gave on the evaluation data.

    `changed` counts what the step touched, `kept` says whether the following steps stand on it, `holds` whether the
    budget did (`None`: there is none). `left_float` and `widened` (int4 to int8) are the operators it spares.
    """

    name: str
    drop: Drop | None
    value: float | None
    sqnr_db: float | None
    holds: bool | None
    kept: bool
    changed: int
    left_float: tuple[str, ...]
    widened: tuple[str, ...]
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How one scheme was brought within its budget: every rung in order, and the one that was taken.

    `budget` in points of `metric` (`None`: no budget, the recipe named the methods), `reference` the float score
    (`None` for agreement), `verdict` how the budget is read: "measured" or "significant".
    """

    scheme: str
    metric: str
    reference: float | None
    samples: int
    budget: float | None
    verdict: str
    rungs: tuple[Rung, ...]
    left_float: tuple[str, ...]
    widened: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GateResult:
    """One figure held against one limit; `unit` is for people."""

    artifact: ArtifactSpec
    gate: str
    limit: float
    measured: float
    passed: bool
    unit: str


def to_plain(value: Any) -> Any:
    """Return dataclasses, specs, paths and enums as JSON-ready dicts, lists and strings.

    Derived figures that readers want (`drop`, shares) are written out beside the fields they come from.
    """
    match value:
        case ArtifactSpec() | Scheme() | Path():
            return str(value)
        case StrEnum():
            return value.value
        case TaskScore():
            return {**_fields(value), "drop_points": value.drop}
        case Drop():
            return {**_fields(value), "is_noise": value.is_noise}
        case Coverage():
            return {
                "quantized": value.quantized_count,
                "operators": len(value.layers),
                "mac_share": value.mac_share,
                "weight_share": value.weight_share,
                "left_float": value.reasons(),
                "layers": to_plain(value.layers),
            }
        case Mapping():
            return {str(key): to_plain(item) for key, item in value.items()}
        case list() | tuple() | frozenset():
            return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    return value


def _fields(value: Any) -> dict[str, Any]:
    return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}

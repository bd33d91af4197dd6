"""report.json: what one build measured, as it is written and read. Its JSON Schema is generated from these types.

Nouns of a build (`exporter.artifacts`) stand here themselves where a report tells all of them and no more; where it
writes out what follows from them (a drop, a share, how a spec is spelled) there is an entry of its own. Fields are the
keys, in the order in which `--json` gives them; `docs/report.md` says of each what it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

from exporter.artifacts import (
    EdgeCase,
    Fidelity,
    Latency,
    LayerCoverage,
    ModelFigures,
    TensorSpec,
    to_plain,
)
from exporter.errors import IntegrityError
from exporter.system.files import write_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

REPORT_NAME = "report.json"
LAYOUT: Final = 1
"""What `schema` says: a report with other keys has another one."""

_UNKNOWN_KEY = "unexpected_keyword_argument"


class Entry:
    """What all objects of a report have in common: a key that they do not know is refused."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    @classmethod
    def of(cls, noun: object) -> Self:
        """Return what a report tells of a build's noun.

        Raises `pydantic.ValidationError`, which is a bug of ours, for one that does not say exactly these keys.
        """
        return cls._adapter().validate_python(to_plain(noun))

    @classmethod
    @functools.cache
    def _adapter(cls) -> TypeAdapter[Self]:
        from pydantic import TypeAdapter

        return TypeAdapter(cls)


@dataclass(frozen=True, slots=True)
class ToolEntry(Entry):
    """What built it."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class ModelEntry(Entry):
    """The float model: what it takes, and what the float32 ONNX graph that artifacts came from weighs and costs."""

    name: str
    version: str
    origin: str
    inputs: tuple[TensorSpec, ...]
    axes: Mapping[str, int]
    float_bytes: int
    float_sha256: str
    float_latency: Latency | None
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class TrainingEntry(Entry):
    """One training of a compression step: what was watched on the validation data, how it went and why it ended."""

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


@dataclass(frozen=True, slots=True)
class StepEntry(Entry):
    """One step of compression: the model before it, after the change (null: training is the change), and at its end."""

    method: str
    settings: Mapping[str, Any]
    before: ModelFigures
    changed: ModelFigures | None
    after: ModelFigures
    trainings: tuple[TrainingEntry, ...]
    details: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class CompressionEntry(Entry):
    """The model as the recipe loaded it, and what each step left of it, in order."""

    original: ModelFigures
    steps: tuple[StepEntry, ...]


@dataclass(frozen=True, slots=True)
class DropEntry(Entry):
    """Points lost, their 95 % interval, and whether these samples can tell them from none."""

    points: float
    low: float
    high: float
    samples: int
    is_noise: bool


@dataclass(frozen=True, slots=True)
class RungEntry(Entry):
    """One rung of the ladder to a budget: what was tried, what it gave, and which operators it spared."""

    name: str
    drop: DropEntry | None
    value: float | None
    sqnr_db: float | None
    holds: bool | None
    kept: bool
    changed: int
    left_float: tuple[str, ...]
    widened: tuple[str, ...]
    seconds: float
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecoveryEntry(Entry):
    """How one scheme was brought within its budget: every rung in order, and what was spared at the end."""

    scheme: str
    metric: str
    reference: float | None
    samples: int
    budget: float | None
    verdict: str
    rungs: tuple[RungEntry, ...]
    left_float: tuple[str, ...]
    widened: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataEntry(Entry):
    """What samples figures and ranges come from; null where no sample gave ranges."""

    evaluated_on: str
    calibration_samples: int | None
    calibration_fingerprint: str | None
    rule: str


@dataclass(frozen=True, slots=True)
class CoverageEntry(Entry):
    """Which operators that compute on floats are quantised, and what share of the work they carry."""

    quantized: int
    operators: int
    mac_share: float
    weight_share: float
    left_float: Mapping[str, int]
    layers: tuple[LayerCoverage, ...]


@dataclass(frozen=True, slots=True)
class ScoreEntry(Entry):
    """The recipe's metric on the float model and on the artifact, and the points between them."""

    metric: str
    reference: float
    value: float
    interval: DropEntry | None
    drop_points: float


@dataclass(frozen=True, slots=True)
class EvidenceEntry(Entry):
    """What was measured of one artifact; what was not is null, and `not_run` says why nothing ran."""

    artifact: str
    runtime: str | None
    runtime_version: str | None
    not_run: str | None
    fidelity: Fidelity | None
    task: ScoreEntry | None
    disagreement: DropEntry | None
    edge_cases: tuple[EdgeCase, ...]
    latency: Latency | None
    peak_rss_mb: float | None
    structure: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArtifactEntry(Entry):
    """One file that was made: who receives it, what it weighs, its coverage and its evidence."""

    artifact: str
    file: str
    targets: tuple[str, ...]
    runtimes: tuple[str, ...]
    size_bytes: int
    times_smaller: float
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    coverage: CoverageEntry
    evidence: EvidenceEntry
    notes: tuple[str, ...]
    seconds: float

    @property
    def format(self) -> str:
        """The file's format: `onnx` of `onnx:float32@fixed`."""
        return self.artifact.partition(":")[0]

    @property
    def scheme(self) -> str:
        """The scheme, and whether shapes are fixed: `float32@fixed` of `onnx:float32@fixed`."""
        return self.artifact.partition(":")[2]


@dataclass(frozen=True, slots=True)
class RefusalEntry(Entry):
    """What a target wanted, and why this build cannot make it."""

    target: str
    artifact: str
    reason: str


@dataclass(frozen=True, slots=True)
class GateEntry(Entry):
    """One figure held against one limit."""

    artifact: str
    gate: str
    limit: float
    measured: float
    passed: bool
    unit: str


@dataclass(frozen=True, slots=True)
class TargetEntry(Entry):
    """Where one target's bundle lies, below the build's folder."""

    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Entry):
    """What one build measured: every number in it was measured in that build, or is absent.

    `compression` is a key only of builds whose recipe compresses.
    """

    schema: Literal[1]
    tool: ToolEntry
    libraries: Mapping[str, str]
    model: ModelEntry
    compression: CompressionEntry | None = None
    recovery: tuple[RecoveryEntry, ...]
    data: DataEntry
    artifacts: tuple[ArtifactEntry, ...]
    refused: tuple[RefusalEntry, ...]
    gates: tuple[GateEntry, ...]
    findings: tuple[str, ...]
    targets: Mapping[str, TargetEntry]
    seconds: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """Return the content of `report.json`."""
        plain: dict[str, Any] = to_plain(self)
        if self.compression is None:
            del plain["compression"]
        return plain


def write_report(folder: Path, report: Report) -> None:
    """Write `folder/report.json`."""
    write_json(folder / REPORT_NAME, report.document())


def read_report(path: Path) -> Report:
    """Return the report in the file `path`; `IntegrityError` (19) names the key where it is none."""
    from pydantic import ValidationError

    try:
        return Report._adapter().validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        # A key that is absent or unknown may be that of another layout: what the layout is matters more.
        told = min(error.errors(include_url=False), key=lambda item: item["loc"] != ("schema",))
        where = ".".join(map(str, told["loc"]))
        if where == "schema" and isinstance(told["input"], int):
            raise IntegrityError(
                f"{path} has layout {told['input']}; this tool reads {LAYOUT}", fix="update edge-exporter"
            ) from error
        what = "no key of a report" if told["type"] == _UNKNOWN_KEY else told["msg"]
        raise IntegrityError(
            f"{path} is damaged: {f'{where}: ' if where else ''}{what}",
            fix="build it again, or copy it again",
        ) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `report.json`: every key that a build writes, and no other."""
    from pydantic.json_schema import GenerateJsonSchema

    class Strict(GenerateJsonSchema):
        """What pydantic leaves out of a dataclass's schema: what it is for, and that its keys are all there are."""

        def dataclass_schema(self, schema: Any) -> dict[str, Any]:
            plain = super().dataclass_schema(schema)
            about = inspect.cleandoc(schema["cls"].__doc__ or "").partition("\n\n")[0]
            required = [*plain["properties"]]
            return {**plain, "description": about, "additionalProperties": False, "required": required}

    schema = Report._adapter().json_schema(schema_generator=Strict)
    # Without compression the key is absent, never null.
    schema["properties"]["compression"] = {"$ref": "#/$defs/CompressionEntry"}
    schema["required"].remove("compression")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "edge-exporter report",
    }

"""The target protocol: what a place that runs models must say and do.

A target is data (what it can run, what it will not run and why, what it wants by default) and one verb
(`bundle`). It never decides how a model is quantised and never runs one; it imports the contracts of
`exporter` (errors, schemes, artifacts, files), and neither the pipeline nor another target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from exporter.artifacts import Artifact, ArtifactSpec, Evidence, Format, Shapes


@dataclass(frozen=True, slots=True)
class RuntimeCapability:
    """What one runtime on the target executes.

    `schemes` are scheme spellings it computes or at least loads; `needs_fixed_shapes` says whether named
    axes must be fixed in the file; `max_opset` and `max_ir_version` bound what an ONNX file may declare
    (`None`: not ONNX, or unbounded); `note` is a sentence for people.
    """

    runtime: str
    format: Format
    schemes: frozenset[str]
    needs_fixed_shapes: bool = False
    max_opset: int | None = None
    max_ir_version: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Schemes of one format that no runtime of the target takes, and why.

    `is_permanent` tells "never" (the platform cannot, or another artifact is always the better one) from
    "not yet" (it could, and this tool does not make or pack it, or an option rules it out).
    """

    format: Format
    schemes: frozenset[str]
    reason: str
    is_permanent: bool = True


class Verdict(StrEnum):
    """What a target says to a format × scheme, in the words of the documentation's table."""

    RUNS = "runs"
    NOT_YET = "not yet"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a target runs: frozen, versioned data; `version` grows whenever the data changes.

    `runtimes` are in order of preference; `exclusions` give the reason for what none of them takes.
    """

    version: str
    runtimes: tuple[RuntimeCapability, ...]
    exclusions: tuple[Exclusion, ...] = ()

    def runtimes_for(self, spec: ArtifactSpec) -> tuple[RuntimeCapability, ...]:
        """Return the runtimes that take `spec` as it is, in order of preference."""
        return tuple(
            runtime
            for runtime in self.runtimes
            if runtime.format is spec.format
            and str(spec.scheme) in runtime.schemes
            and (not runtime.needs_fixed_shapes or spec.shapes == "fixed")
        )

    def refusal(self, spec: ArtifactSpec) -> str | None:
        """Return why no runtime of this target takes `spec`, or `None` if one does."""
        if self.runtimes_for(spec):
            return None
        exclusion = self.exclusion_of(spec)
        if exclusion is not None:
            return exclusion.reason
        same_format = [runtime for runtime in self.runtimes if runtime.format is spec.format]
        if not same_format:
            return f"no runtime of this target loads .{spec.format} files"
        same_scheme = [runtime for runtime in same_format if str(spec.scheme) in runtime.schemes]
        if not same_scheme:
            offered = sorted({scheme for runtime in same_format for scheme in runtime.schemes})
            return f"as .{spec.format} it takes {', '.join(offered)}, not {spec.scheme}"
        names = ", ".join(runtime.runtime for runtime in same_scheme)
        return f"{names} needs fixed shapes; write {spec}@fixed"

    def exclusion_of(self, spec: ArtifactSpec) -> Exclusion | None:
        """Return the exclusion that names the format and scheme of `spec`, if there is one."""
        matching = (
            exclusion
            for exclusion in self.exclusions
            if exclusion.format is spec.format and str(spec.scheme) in exclusion.schemes
        )
        return next(matching, None)

    def verdict(self, spec: ArtifactSpec) -> Verdict:
        """Return whether `spec`, or else its twin of fixed shape, runs here, might one day, or never will.

        What nobody excluded by name counts as "not yet".
        """
        if self.runtimes_for(dataclasses.replace(spec, shapes=Shapes.FIXED)) or self.runtimes_for(spec):
            return Verdict.RUNS
        exclusion = self.exclusion_of(spec)
        return Verdict.NEVER if exclusion is not None and exclusion.is_permanent else Verdict.NOT_YET


class Budget(BaseModel):
    """Figures a target's artifacts must stay within; `None` means unbounded.

    `size_mb` (10^6 bytes) bounds every artifact file, and is held by the build. The others bound the best file on each
    device that was measured, and are held by `edge-export check`: `p90_ms` of one inference, `rss_mb` (10^6 bytes) of
    the process that ran it, `instructions_m` (millions) of one inference on an emulated core.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_mb: float | None = Field(default=None, gt=0)
    p90_ms: float | None = Field(default=None, gt=0)
    rss_mb: float | None = Field(default=None, gt=0)
    instructions_m: float | None = Field(default=None, gt=0)


class TargetOptions(BaseModel):
    """The keys of `[targets.NAME]` that every target has; targets subclass it to add their own.

    `artifacts` replaces the target's defaults (spellings of `ArtifactSpec`); `budget` holds figures that
    a build or a device run must stay within.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: tuple[str, ...] | None = None
    budget: Budget = Budget()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a bundle says about the model it carries; plain data from the recipe."""

    name: str
    version: str
    labels: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    tool_version: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One artifact with its evidence and the runtimes of this target it is meant for (preferred first)."""

    artifact: Artifact
    evidence: Evidence
    runtimes: tuple[RuntimeCapability, ...]


@dataclass(frozen=True, slots=True)
class BundleRequest:
    """Everything a target needs to write its bundle into the empty folder `destination`.

    The pipeline has already written what all bundles share before it calls `Target.bundle`:
    `destination/models/` (the artifacts and companions) and `destination/golden/` (golden vectors:
    `golden.json` and `.npy` files); afterwards it writes `evidence.json` and `manifest.json`.
    `Delivery.artifact.path` points inside `destination/models/`.
    """

    card: ModelCard
    deliveries: tuple[Delivery, ...]
    options: TargetOptions
    destination: Path


@runtime_checkable
class Target(Protocol):
    """A place that runs models. Third parties register one under the entry point `edge_exporter.targets`."""

    @property
    def name(self) -> str:
        """The name used in recipes and on the command line, `[a-z][a-z0-9-]*`."""

    @property
    def summary(self) -> str:
        """One sentence for `edge-export targets`."""

    @property
    def options_model(self) -> type[TargetOptions]:
        """The Pydantic model of this target's recipe table."""

    def capabilities(self, options: TargetOptions) -> Capabilities:
        """Return what this target runs under `options` (an older minimum OS runs less)."""

    def default_artifacts(self, options: TargetOptions) -> tuple[ArtifactSpec, ...]:
        """Return the artifacts this target wants when the recipe names none."""

    def bundle(self, request: BundleRequest) -> None:
        """Write this target's integration code and documents into `request.destination`."""

"""What a job has in its hands at the end → its report: every number in it was measured in that build, or is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import __version__
from exporter.artifacts import Artifact, Evidence, to_plain
from exporter.bundle.report import (
    LAYOUT,
    ArtifactEntry,
    CompressionEntry,
    CoverageEntry,
    DataEntry,
    EvidenceEntry,
    GateEntry,
    ModelEntry,
    RecoveryEntry,
    RefusalEntry,
    Report,
    StepEntry,
    TargetEntry,
    ToolEntry,
)
from exporter.jobs.shared.making import Proven
from exporter.jobs.shared.opening import FloatGraph
from exporter.jobs.shared.settle import Settling
from exporter.judging.reference import latency_of
from exporter.recipe.planning import Plan
from exporter.system.converters.environment import version_of
from exporter.system.files import digest, size_bytes

if TYPE_CHECKING:
    from exporter.compress.steps import Compressed

_TOOLS = (
    "torch",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "litert-quantizer",
    "coremltools",
    "numpy",
)


def report_of(
    graph: FloatGraph,
    settling: Settling,
    proven: Proven,
    *,
    seconds: Mapping[str, float],
    findings: Sequence[str] = (),
    compressed: Compressed | None = None,
) -> Report:
    """Return the report of a job that made `proven` from `graph`; `seconds` is its time by stage.

    `findings` are what was odd beside the data's own and the yardstick's doubts. Sizes and scores are held against the
    model as the recipe gave it, also where `compressed` came between.
    """
    plan, data, statistics = graph.plan, graph.data, settling.statistics
    float_bytes = _float_bytes(graph.onnx) if compressed is None else compressed.original.size_bytes
    return Report(
        schema=LAYOUT,
        tool=ToolEntry("edge-exporter", __version__),
        libraries={name: version_of(name) for name in _TOOLS},
        model=_model(graph, proven, float_bytes),
        compression=None if compressed is None else _compression(compressed),
        recovery=tuple(RecoveryEntry.of(recovery) for recovery in settling.recoveries),
        data=DataEntry(
            evaluated_on=data.source,
            calibration_samples=None if statistics is None else statistics.samples,
            calibration_fingerprint=None if statistics is None else statistics.dataset_fingerprint,
            rule=plan.recipe.quantize.rule,
        ),
        artifacts=tuple(
            _artifact(plan, artifact, proven.evidence[spec], float_bytes)
            for spec, artifact in proven.artifacts.items()
        ),
        refused=tuple(
            RefusalEntry(refusal.target, str(refusal.spec), refusal.reason) for refusal in plan.refused
        ),
        gates=tuple(GateEntry.of(gate) for gate in proven.gates),
        findings=(*data.findings, *findings, *proven.doubts),
        targets={name: TargetEntry(folder=name) for name in plan.targets},
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def _float_bytes(onnx: Path) -> int:
    return size_bytes(onnx) + sum(size_bytes(path) for path in onnx.parent.glob(f"{onnx.name}.data"))


def _model(graph: FloatGraph, proven: Proven, float_bytes: int) -> ModelEntry:
    import onnx_ir as ir

    from exporter.model.graph import node_macs, parameter_count

    model, plan, source = ir.load(graph.onnx), graph.plan, graph.source
    return ModelEntry(
        name=plan.recipe.model.name,
        version=plan.recipe.model.version,
        origin=plan.origin.value,
        inputs=source.inputs,
        axes=dict(source.axes),
        float_bytes=float_bytes,
        float_sha256=digest(graph.onnx),
        float_latency=latency_of(proven.reference.record),
        parameters=parameter_count(model),
        macs=sum(node_macs(model, source.axes).values()),
    )


def _compression(compressed: Compressed) -> CompressionEntry:
    steps = [
        {key: value for key, value in to_plain(step).items() if key != "original"}
        for step in compressed.steps
    ]
    return CompressionEntry(compressed.original, tuple(StepEntry.of(step) for step in steps))


def _artifact(plan: Plan, artifact: Artifact, evidence: Evidence, float_bytes: int) -> ArtifactEntry:
    planned = next(item for item in plan.artifacts if item.spec == artifact.spec)
    return ArtifactEntry(
        artifact=str(artifact.spec),
        file=artifact.path.name,
        targets=tuple(sorted(planned.wanted_by)),
        runtimes=tuple(sorted({runtime for runtimes in planned.wanted_by.values() for runtime in runtimes})),
        size_bytes=artifact.size_bytes,
        times_smaller=float_bytes / artifact.size_bytes,
        sha256=artifact.sha256,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        coverage=CoverageEntry.of(artifact.coverage),
        evidence=EvidenceEntry.of(evidence),
        notes=artifact.notes,
        seconds=round(artifact.seconds, 3),
    )

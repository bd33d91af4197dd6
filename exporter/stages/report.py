"""All of a build's nouns → report.json: every number in it was measured in that build, or is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from exporter import __version__
from exporter.artifacts import Artifact, ArtifactSpec, Evidence, GateResult, to_plain
from exporter.judging.reference import latency_of
from exporter.model.source import SourceModel
from exporter.recipe.planning import Plan
from exporter.runtimes.worker import RunRecord
from exporter.system.converters.environment import version_of
from exporter.system.files import digest, size_bytes, write_json

if TYPE_CHECKING:
    from calibration.statistics import Statistics
    from exporter.artifacts import CompressionStep, ModelFigures, Recovery

REPORT_SCHEMA = 1
_TOOLS = (
    "torch",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "coremltools",
    "numpy",
)


def report_document(
    plan: Plan,
    source: SourceModel,
    onnx: Path,
    statistics: Statistics | None,
    artifacts: Mapping[ArtifactSpec, Artifact],
    evidence: Mapping[ArtifactSpec, Evidence],
    reference: RunRecord,
    gates: Sequence[GateResult],
    findings: Sequence[str],
    evaluated_on: str,
    seconds: Mapping[str, float],
    compressed: Compression | None = None,
    recoveries: Sequence[Recovery] = (),
) -> dict[str, Any]:
    """Return the content of `report.json`; `docs/report.md` describes the keys.

    Sizes and scores are held against the model as the recipe gave it, also where `compressed` came between.
    """
    float_size = size_bytes(onnx) + sum(size_bytes(path) for path in onnx.parent.glob(f"{onnx.name}.data"))
    if compressed is not None:
        float_size = compressed.original.size_bytes
    return {
        "schema": REPORT_SCHEMA,
        "tool": {"name": "edge-exporter", "version": __version__},
        "libraries": {name: version_of(name) for name in _TOOLS},
        "model": {
            "name": plan.recipe.model.name,
            "version": plan.recipe.model.version,
            "origin": plan.origin.value,
            "inputs": to_plain(source.inputs),
            "axes": dict(source.axes),
            "float_bytes": float_size,
            "float_sha256": digest(onnx),
            "float_latency": to_plain(latency_of(reference)),
            **_graph_figures(onnx, source),
        },
        **_compression(compressed),
        "recovery": [to_plain(recovery) for recovery in recoveries],
        "data": {
            "evaluated_on": evaluated_on,
            "calibration_samples": statistics.samples if statistics is not None else None,
            "calibration_fingerprint": statistics.dataset_fingerprint if statistics is not None else None,
            "rule": plan.recipe.quantize.rule,
        },
        "artifacts": [
            _artifact_entry(plan, artifact, evidence[spec], float_size)
            for spec, artifact in artifacts.items()
        ],
        "refused": [
            {"target": refusal.target, "artifact": str(refusal.spec), "reason": refusal.reason}
            for refusal in plan.refused
        ],
        "gates": to_plain(list(gates)),
        "findings": list(findings),
        "targets": {name: {"folder": name} for name in plan.targets},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


class Compression(Protocol):
    """What compression says of itself; `exporter.compress.steps.Compressed` is one."""

    @property
    def original(self) -> ModelFigures:
        """The model as the recipe loaded it."""

    @property
    def steps(self) -> tuple[CompressionStep, ...]:
        """What each step did, in order."""


def _compression(compressed: Compression | None) -> dict[str, Any]:
    if compressed is None:
        return {}
    steps = [
        {key: value for key, value in to_plain(step).items() if key != "original"}
        for step in compressed.steps
    ]
    return {"compression": {"original": to_plain(compressed.original), "steps": steps}}


def _graph_figures(onnx: Path, source: SourceModel) -> dict[str, int]:
    import onnx_ir as ir

    from exporter.model.graph import node_macs, parameter_count

    graph = ir.load(onnx)
    return {"parameters": parameter_count(graph), "macs": sum(node_macs(graph, source.axes).values())}


def _artifact_entry(plan: Plan, artifact: Artifact, evidence: Evidence, float_size: int) -> dict[str, Any]:
    planned = next(item for item in plan.artifacts if item.spec == artifact.spec)
    return {
        "artifact": str(artifact.spec),
        "file": artifact.path.name,
        "targets": sorted(planned.wanted_by),
        "runtimes": sorted({runtime for runtimes in planned.wanted_by.values() for runtime in runtimes}),
        "size_bytes": artifact.size_bytes,
        "times_smaller": float_size / artifact.size_bytes,
        "sha256": artifact.sha256,
        "inputs": to_plain(artifact.inputs),
        "outputs": to_plain(artifact.outputs),
        "coverage": to_plain(artifact.coverage),
        "evidence": to_plain(evidence),
        "notes": list(artifact.notes),
        "seconds": round(artifact.seconds, 3),
    }


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write `folder/report.json`."""
    write_json(folder / "report.json", report)

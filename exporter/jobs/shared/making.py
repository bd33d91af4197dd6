"""FloatGraph × Settling → artifacts, and what running them shows: made, validated, examined and held to the gates."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.artifacts import Artifact, ArtifactSpec, Evidence, Format, GateResult, TensorSpec
from exporter.bundle.golden import GoldenInputs
from exporter.errors import EdgeError
from exporter.formats.base import ProduceRequest
from exporter.formats.mlpackage.producer import NOT_RUN, inspect_structure
from exporter.formats.producers import produce
from exporter.jobs.shared.agreement import examined
from exporter.jobs.shared.clock import Clock
from exporter.jobs.shared.opening import FloatGraph
from exporter.jobs.shared.settle import Settling
from exporter.judging.reference import Reference
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.runtimes.worker import write_sample
from exporter.schemes import Scheme
from exporter.stages.blame import worst_layers
from exporter.stages.data import require_labels_fit
from exporter.stages.gates import first_failure, judge
from exporter.stages.latency_notes import explain_latencies
from exporter.stages.size_notes import explain_sizes
from exporter.stages.validate import edge_cases, make_reference, structural_evidence, validate
from exporter.system.files import size_bytes

SUSPECT_SAMPLES = 8
_NO_GOLDEN = GoldenInputs(())


@dataclass(frozen=True, slots=True)
class Proven:
    """The artifacts of a plan, what was measured of each, the gates they were held to, and doubts about the yardstick."""

    artifacts: Mapping[ArtifactSpec, Artifact]
    evidence: Mapping[ArtifactSpec, Evidence]
    reference: Reference
    gates: tuple[GateResult, ...]
    doubts: tuple[str, ...]


def make_and_prove(
    graph: FloatGraph,
    settling: Settling,
    workdir: Path,
    *,
    clock: Clock,
    metadata: Mapping[str, str],
    golden: GoldenInputs = _NO_GOLDEN,
) -> Proven:
    """Return every artifact of the graph's plan, made in `workdir` and judged; a gate that fails raises nothing yet.

    `metadata` are the texts that files carry; `golden` inputs are answered too. Raises what producing and running raise.
    """
    artifacts = make_artifacts(graph, settling, workdir, clock=clock, metadata=metadata)
    evidence, reference = _validated(graph, artifacts, golden, workdir, clock)
    with clock.stage("examining numerics"):
        artifacts, evidence, numeric = examined(artifacts, evidence, graph.onnx, settling.extremes())
    artifacts = explain_latencies(artifacts, evidence)
    gates = (*judge(graph.plan, artifacts, evidence), *numeric)
    return Proven(artifacts, evidence, reference, gates, _doubts(reference, graph.onnx))


def make_artifacts(
    graph: FloatGraph,
    settling: Settling,
    workdir: Path,
    *,
    clock: Clock,
    metadata: Mapping[str, str],
) -> dict[ArtifactSpec, Artifact]:
    """Return every artifact of the graph's plan, each made once, in `workdir`."""
    plan, source = graph.plan, graph.source
    destination = workdir / "models"
    destination.mkdir(parents=True)
    outputs = output_specs(graph.onnx)
    require_labels_fit(graph.data.class_names, outputs[0].shape[-1] if outputs[0].shape else None)
    samples = _converters_samples(graph, settling, workdir)
    made: dict[ArtifactSpec, Artifact] = {}
    with clock.stage("making artifacts", len(plan.artifacts)) as advance:
        for number, planned in enumerate(plan.artifacts, start=1):
            settled = settling.schemes[planned.spec.scheme]
            request = ProduceRequest(
                spec=planned.spec,
                model_name=source.name,
                onnx=settled.onnx,
                program=graph.program,
                inputs=source.inputs,
                outputs=outputs,
                axes=source.axes,
                samples=samples if _is_calibrated(planned.spec.scheme, settling) else None,
                rule=plan.recipe.quantize.rule,
                destination=destination,
                workdir=workdir,
                encodings=settled.encodings,
                metadata=metadata,
            )
            with _naming(planned.spec), clock.progress.step(f"making {planned.spec}"):
                made[planned.spec] = produce(request)
            advance(number)
    return explain_sizes(made, size_bytes(graph.onnx))


def output_specs(onnx: Path) -> tuple[TensorSpec, ...]:
    """Return the outputs of the float graph as onnxruntime names them."""
    return OnnxModel(onnx).outputs


def suspects_of(graph: FloatGraph, settling: Settling, proven: Proven) -> dict[str, float]:
    """Return the layers that lose most signal in the artifact whose gate failed first, with decibels lost.

    Empty where no gate failed, or the artifact is none whose layers can be told apart.
    """
    failed = first_failure(proven.gates)
    if failed is None:
        return {}
    spec = failed.artifact
    if spec.format is not Format.ONNX or not spec.scheme.needs_calibration:
        return {}
    few = list(itertools.islice(graph.data.samples, SUSPECT_SAMPLES))
    losses = worst_layers(settling.schemes[spec.scheme].onnx, proven.artifacts[spec].path, few)
    return {loss.layer: loss.lost_db for loss in losses}


def _is_calibrated(scheme: Scheme, settling: Settling) -> bool:
    """Whether files of `scheme` take anything from samples: ranges, or int4 weights rounded with them."""
    return scheme.needs_calibration or bool(settling.schemes[scheme].encodings.blocks)


def _converters_samples(graph: FloatGraph, settling: Settling, workdir: Path) -> Path | None:
    """Write the calibration samples for converters that run in a process of their own, if one of them wants any."""
    wanted = any(
        planned.spec.format.needs_torch and _is_calibrated(planned.spec.scheme, settling)
        for planned in graph.plan.artifacts
    )
    if not wanted or graph.data.calibration is None:
        return None
    samples = workdir / "samples"
    samples.mkdir()
    for number, sample in enumerate(graph.data.calibration):
        write_sample(samples, number, sample)
    return samples


def _validated(
    graph: FloatGraph,
    artifacts: Mapping[ArtifactSpec, Artifact],
    golden: GoldenInputs,
    workdir: Path,
    clock: Clock,
) -> tuple[dict[ArtifactSpec, Evidence], Reference]:
    source, data = graph.source, graph.data
    evidence: dict[ArtifactSpec, Evidence] = {}
    with clock.stage("validating", len(artifacts) + 1) as advance:
        edges = edge_cases(source.inputs, source.axes, data.samples)
        reference = make_reference(
            graph.onnx, data.judging, edges, workdir=workdir / "reference", golden=golden
        )
        if graph.baseline is not None:
            # What a user loses, he loses against the model he had, not against our compressed one.
            reference = replace(reference, score=graph.baseline)
        advance(1)
        for number, (spec, artifact) in enumerate(artifacts.items(), start=2):
            with _naming(spec), clock.progress.step(f"validating {spec}"):
                evidence[spec] = _evidence_of(artifact, graph.program, reference, workdir)
            advance(number)
    return evidence, reference


def _evidence_of(artifact: Artifact, program: Path | None, reference: Reference, workdir: Path) -> Evidence:
    if artifact.spec.format is Format.MLPACKAGE and program is not None:
        log = workdir / f"{artifact.path.name}.log"
        return structural_evidence(artifact, NOT_RUN, inspect_structure(artifact.path, program, log=log))
    return validate(artifact, reference, workdir=workdir / "validation")


@contextlib.contextmanager
def _naming(spec: ArtifactSpec) -> Iterator[None]:
    """Put the artifact's name in front of whatever goes wrong while it is made or judged."""
    try:
        yield
    except EdgeError as error:
        if not error.cause.startswith(str(spec)):
            error.cause = f"{spec}: {error.cause}"
        raise


def _doubts(reference: Reference, onnx: Path) -> tuple[str, ...]:
    """Return what is odd about the float model's own score: a drop from chance means nothing."""
    classes = output_specs(onnx)[0].shape[-1:]
    if reference.metric_name != "top1" or reference.score is None or not isinstance(classes[0], int):
        return ()
    if reference.score > 1.5 / classes[0]:
        return ()
    return (
        f"the float model itself scores {reference.score:.4f}, no better than chance over {classes[0]} classes: "
        "check weights, labels and preprocess",
    )

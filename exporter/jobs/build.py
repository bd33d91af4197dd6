"""The one-way flow of a build: load → compress → to_onnx → tidy → calibrate → produce → validate → bundle → report.

This module only passes nouns from one stage to the next; each stage is a module of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import Artifact, ArtifactSpec, Evidence, Format, GateResult
from exporter.attesting.facts import gather_facts
from exporter.attesting.provenance import provenance_of, record_inputs, write_provenance
from exporter.bundle.contract import file_metadata
from exporter.bundle.manifest import MANIFEST_NAME, write_manifest
from exporter.errors import EdgeError, UsageError
from exporter.formats.base import ProduceRequest
from exporter.formats.producers import produce
from exporter.model.source import SourceModel
from exporter.progress import Progress
from exporter.recipe.planning import Plan
from exporter.runtimes.worker import write_sample
from exporter.schemes import Scheme
from exporter.stages.bundle import write_bundle
from exporter.stages.data import BuildData, read_data, require_labels_fit
from exporter.stages.gates import first_failure, judge, require_passed
from exporter.stages.latency_notes import explain_latencies
from exporter.stages.report import report_document, write_report
from exporter.stages.size_notes import explain_sizes
from exporter.system.files import (
    appear_at_once,
    hold_lock,
    scratch_folder,
    size_bytes,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    from calibration.statistics import Statistics
    from exporter.bundle.golden import GoldenInputs
    from exporter.compress.steps import Compressed
    from exporter.jobs.shared.settle import Settled
    from exporter.judging.reference import Reference

PARITY_SAMPLES = 4
SUSPECT_SAMPLES = 8
TORCH_FOLDER = "torch"
"""Where a build puts the compressed torch model, beside the targets' bundles."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Where a build went and what it reports (the content of `report.json`)."""

    path: Path
    report: Mapping[str, Any]


@dataclass(slots=True)
class _Clock:
    """Seconds by stage, in order."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Any]:
        started = time.monotonic()
        with self.progress.step(name, total) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def build(plan: Plan, *, out: Path, progress: Progress, log: Path, resume: bool = False) -> BuildResult:
    """Build everything in `plan` into `out/<name>/<version>/`, which appears whole or not at all.

    `log` receives what user code and converters print. What compression has finished or saved half-way stays
    beside the destination until a build ends well; with `resume` it is gone on from, otherwise begun anew.
    Raises any `EdgeError`; whatever is raised, an older build in the same place is untouched.
    """
    model = plan.recipe.model
    destination = out / model.name / model.version
    holder = out / model.name / f".{model.version}.lock"
    workdir = out / model.name / f".edge-work-{model.version}"
    saved = kept_compression(plan, out)
    with hold_lock(holder, what=str(destination)):
        shutil.rmtree(workdir, ignore_errors=True)
        try:
            _require_no_target_lost(plan, destination)
            with appear_at_once(destination) as staging:
                workdir.mkdir(parents=True)
                run = _Run(plan, workdir, saved, resume, _Clock(progress), log)
                report = _build_into(run, staging)
            shutil.rmtree(saved, ignore_errors=True)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
            with contextlib.suppress(OSError):
                holder.unlink()
                holder.parent.rmdir()
    return BuildResult(destination, report)


def kept_compression(plan: Plan, out: Path) -> Path:
    """Return the folder where unfinished compression waits for `--resume`."""
    return out / plan.recipe.model.name / f".edge-compression-{plan.recipe.model.version}"


def take_part(plan: Plan, *, out: Path, progress: Progress, log: Path, resume: bool = False) -> None:
    """Do what a process that is not the main one of a distributed run has to do: train along, write nothing."""
    from exporter.stages.load import load

    with scratch_folder("training") as workdir:
        run = _Run(plan, workdir, kept_compression(plan, out), resume, _Clock(progress), log)
        source = load(plan, log=log)
        compress_model(run, source, read_data(plan, source))


@dataclass(frozen=True, slots=True)
class _Run:
    """One build under way: `workdir` is gone after it, `saved` outlives a build that was killed."""

    plan: Plan
    workdir: Path
    saved: Path
    resume: bool
    clock: _Clock
    log: Path


def _require_no_target_lost(plan: Plan, destination: Path) -> None:
    """Refuse to replace an older build by one that lacks some of its targets."""
    there = {path.parent.name for path in destination.glob(f"*/{MANIFEST_NAME}")}
    lost = sorted(there - set(plan.targets))
    if lost:
        raise UsageError(
            f"{destination} holds a bundle for {', '.join(lost)}, which this build would remove",
            fix="build all its targets, choose another --out, or raise model.version",
        )


def _build_into(run: _Run, staging: Path) -> dict[str, Any]:
    from calibration.preprocess import describe_preprocess, preprocess_from_dict
    from exporter.bundle.golden_inputs import choose_golden_inputs
    from exporter.jobs.shared.agreement import examined
    from exporter.jobs.shared.settle import settle_all
    from exporter.stages.load import load

    plan, workdir, clock = run.plan, run.workdir, run.clock
    inputs = record_inputs(plan)
    with clock.stage("loading the model"):
        source = load(plan, log=run.log)
    with clock.stage("reading data"):
        data = read_data(plan, source)
    for finding in data.findings:
        clock.progress.say(finding)
    compressed = compress_model(run, source, data)
    if compressed is not None:
        source = compressed.source
    onnx, program = _export(plan, source, data, workdir, clock)
    baseline = None if compressed is None else compressed.original.score
    with clock.stage("calibrating", len(data.calibration or ())) as advance:
        settled, statistics = settle_all(
            plan, source, onnx, data, workdir / "recovery", clock.progress, advance, baseline=baseline
        )
    contract = preprocess_from_dict(plan.recipe.data.preprocess)
    golden, unpictured = choose_golden_inputs(data.samples, contract)
    model = plan.recipe.model
    metadata = file_metadata(
        source.name, model.version, describe_preprocess(contract), data.class_names, model.license
    )
    artifacts = _produce_all(plan, source, onnx, program, settled, data, metadata, workdir, clock)
    evidence, reference = _validate_all(
        source, data, golden, onnx, program, artifacts, workdir, clock, baseline
    )
    with clock.stage("examining numerics"):
        artifacts, evidence, numeric = examined(artifacts, evidence, onnx, _extremes(statistics))
    artifacts = explain_latencies(artifacts, evidence)
    gates = (*judge(plan, artifacts, evidence), *numeric)
    report = report_document(
        plan,
        source,
        onnx,
        statistics,
        artifacts,
        evidence,
        reference.record,
        gates,
        (*data.findings, *unpictured, *_doubts(reference, onnx)),
        data.source,
        clock.seconds,
        compressed,
        tuple(item.recovery for item in settled.values() if item.recovery is not None),
    )
    require_passed(gates, report, _suspects(gates, artifacts, settled, data))
    facts = gather_facts(plan, source, data, statistics, report)
    with clock.stage("writing bundles", len(plan.targets)) as advance:
        for number, name in enumerate(plan.targets, start=1):
            write_bundle(plan, name, facts, artifacts, evidence, reference, staging / name)
            advance(number)
    if compressed is not None:
        _write_torch(compressed, staging / TORCH_FOLDER)
    _write_kept_layers(settled, staging)
    write_report(staging, report)
    write_provenance(staging, provenance_of(plan, facts, inputs, staging))
    write_manifest(staging, {"name": plan.recipe.model.name, "version": plan.recipe.model.version})
    return report


# --- stages ----------------------------------------------------------------------------------------------


def compress_model(run: _Run, source: SourceModel, data: BuildData) -> Compressed | None:
    """Return the model after the recipe's `[[compress]]`, or `None` if it has none."""
    if not run.plan.recipe.compress:
        return None
    from exporter.compress.steps import Workshop, compress
    from exporter.quantize.regions import decide_regions
    from exporter.stages.measure import Judging, export, measure, race_models

    judging = Judging(data.samples, data.labels, data.metric_name, data.metric)
    with run.clock.stage("compressing"):
        return compress(
            source,
            Workshop(
                recipe=run.plan.recipe,
                training=data.training,
                calibration=data.calibration,
                folder=run.saved,
                resume=run.resume,
                progress=run.clock.progress,
                measure=lambda model, folder: measure(model, folder, judging),
                race=race_models,
                export=export,
                decide_regions=decide_regions,
            ),
        )


def _extremes(statistics: Statistics | None) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest number that calibration saw of each tensor."""
    if statistics is None:
        return {}
    return {
        name: (sketch.minimum, sketch.maximum) for name, sketch in statistics.sketches.items() if sketch.count
    }


def _write_kept_layers(settled: Mapping[Scheme, Settled], folder: Path) -> None:
    """Write what each scheme spared as a list that a recipe's `quantize.keep_from` can name."""
    for scheme, item in settled.items():
        if item.recovery is not None and item.recovery.left_float:
            text = f"# {scheme}: left in float so that max_drop = {item.recovery.budget:g} holds\n"
            text += "".join(f"{name}\n" for name in item.recovery.left_float)
            write_bytes(folder / f"keep-{scheme}.txt", text.encode())


def _write_torch(compressed: Compressed, folder: Path) -> None:
    """Write the compressed torch model as data: its weights, and each step's edit of the structure."""
    from exporter.compress.saved import serialized_weights

    if compressed.source.module is None:
        raise TypeError("a compressed model has a torch module")
    folder.mkdir()
    write_bytes(folder / "weights.safetensors", serialized_weights(compressed.source.module))
    for number, edit in enumerate(compressed.edits, start=1):
        # A factory's folder is this machine's; who rebuilds the model names his own.
        portable = {key: value for key, value in edit.items() if key != "folder"}
        write_json(folder / f"{number:02d}-{edit['kind']}.json", portable)


def _export(
    plan: Plan, source: SourceModel, data: BuildData, workdir: Path, clock: _Clock
) -> tuple[Path, Path | None]:
    """Write the tidy float graph, check it against torch, and write the program other formats start from."""
    from exporter.model.capture import save_program
    from exporter.model.onnx_write import save_onnx
    from exporter.model.tidy import tidy
    from exporter.model.to_onnx import check_parity, to_onnx

    onnx = workdir / "float32.onnx"
    with clock.stage("exporting to ONNX"):
        save_onnx(tidy(to_onnx(source), source.inputs), onnx)
    if source.module is None:
        return onnx, None
    with clock.stage("checking the export against torch"):
        check_parity(source, onnx, list(itertools.islice(data.samples, PARITY_SAMPLES)))
    if not plan.needs_program:
        return onnx, None
    with clock.stage("capturing the program for LiteRT and Core ML"):
        return onnx, save_program(source, workdir / "program.pt2")


def _produce_all(
    plan: Plan,
    source: SourceModel,
    onnx: Path,
    program: Path | None,
    settled: Mapping[Scheme, Settled],
    data: BuildData,
    metadata: Mapping[str, str],
    workdir: Path,
    clock: _Clock,
) -> dict[ArtifactSpec, Artifact]:
    destination, samples = workdir / "models", workdir / "samples"
    for folder in (destination, samples):
        folder.mkdir()
    # int4 weights of other formats are rounded with the samples where those of ONNX were
    rounds = any(item.encodings.blocks for item in settled.values())
    if (plan.needs_calibration or rounds) and data.calibration is not None:
        for number, sample in enumerate(data.calibration):
            write_sample(samples, number, sample)
    outputs = _output_specs(onnx)
    require_labels_fit(data.class_names, outputs[0].shape[-1] if outputs[0].shape else None)
    made: dict[ArtifactSpec, Artifact] = {}
    with clock.stage("making artifacts", len(plan.artifacts)) as advance:
        for number, planned in enumerate(plan.artifacts, start=1):
            request = ProduceRequest(
                spec=planned.spec,
                model_name=source.name,
                onnx=settled[planned.spec.scheme].onnx,
                program=program,
                inputs=source.inputs,
                outputs=outputs,
                axes=source.axes,
                samples=samples
                if planned.spec.scheme.needs_calibration or settled[planned.spec.scheme].encodings.blocks
                else None,
                rule=plan.recipe.quantize.rule,
                destination=destination,
                workdir=workdir,
                encodings=settled[planned.spec.scheme].encodings,
                metadata=metadata,
            )
            with _naming(planned.spec), clock.progress.step(f"making {planned.spec}"):
                made[planned.spec] = produce(request)
            advance(number)
    return explain_sizes(made, size_bytes(onnx))


@contextlib.contextmanager
def _naming(spec: ArtifactSpec) -> Iterator[None]:
    """Put the artifact's name in front of whatever goes wrong while it is made or judged."""
    try:
        yield
    except EdgeError as error:
        if not error.cause.startswith(str(spec)):
            error.cause = f"{spec}: {error.cause}"
        raise


def _output_specs(onnx: Path) -> tuple[Any, ...]:
    from exporter.runtimes.onnxruntime_cpu import OnnxModel

    return OnnxModel(onnx).outputs


def _validate_all(
    source: SourceModel,
    data: BuildData,
    golden: GoldenInputs,
    onnx: Path,
    program: Path | None,
    artifacts: Mapping[ArtifactSpec, Artifact],
    workdir: Path,
    clock: _Clock,
    baseline: float | None,
) -> tuple[dict[ArtifactSpec, Evidence], Reference]:
    from exporter.stages.validate import edge_cases, make_reference, structural_evidence, validate

    evidence: dict[ArtifactSpec, Evidence] = {}
    with clock.stage("validating", len(artifacts) + 1) as advance:
        reference = make_reference(
            onnx,
            data.samples,
            edge_cases(source.inputs, source.axes, data.samples),
            metric_name=data.metric_name,
            metric=data.metric,
            labels=data.labels,
            workdir=workdir / "reference",
            golden=golden,
        )
        if baseline is not None:
            # What a user loses, he loses against the model he had, not against our compressed one.
            reference = replace(reference, score=baseline)
        advance(1)
        for number, (spec, artifact) in enumerate(artifacts.items(), start=2):
            with _naming(spec), clock.progress.step(f"validating {spec}"):
                if spec.format is Format.MLPACKAGE and program is not None:
                    from exporter.formats.mlpackage.producer import NOT_RUN, inspect_structure

                    evidence[spec] = structural_evidence(
                        artifact,
                        NOT_RUN,
                        inspect_structure(artifact.path, program, log=workdir / f"{artifact.path.name}.log"),
                    )
                else:
                    evidence[spec] = validate(artifact, reference, workdir=workdir / "validation")
            advance(number)
    return evidence, reference


def _suspects(
    gates: Sequence[GateResult],
    artifacts: Mapping[ArtifactSpec, Artifact],
    settled: Mapping[Scheme, Settled],
    data: BuildData,
) -> dict[str, float]:
    """Return the layers that lose most signal in the artifact whose gate failed first, with decibels lost."""
    from exporter.stages.blame import worst_layers

    failed = first_failure(gates)
    if (
        failed is None
        or failed.artifact.format is not Format.ONNX
        or not failed.artifact.scheme.needs_calibration
    ):
        return {}
    losses = worst_layers(
        settled[failed.artifact.scheme].onnx,
        artifacts[failed.artifact].path,
        list(itertools.islice(data.samples, SUSPECT_SAMPLES)),
    )
    return {loss.layer: loss.lost_db for loss in losses}


def _doubts(reference: Reference, onnx: Path) -> tuple[str, ...]:
    """Return what is odd about the float model's own score: a drop from chance means nothing."""
    classes = _output_specs(onnx)[0].shape[-1:]
    if reference.metric_name != "top1" or reference.score is None or not isinstance(classes[0], int):
        return ()
    if reference.score > 1.5 / classes[0]:
        return ()
    return (
        f"the float model itself scores {reference.score:.4f}, no better than chance over {classes[0]} classes: "
        "check weights, labels and preprocess",
    )

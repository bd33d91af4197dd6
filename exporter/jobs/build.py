"""A build: a plan in, bundles and a report out, whole or not at all.

open → compress → float graph → settle → make and prove → gates → bundles → report. This module only passes nouns from
one step to the next.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.attesting.facts import gather_facts
from exporter.attesting.provenance import provenance_of, record_inputs, write_provenance
from exporter.bundle.contract import file_metadata
from exporter.bundle.golden_inputs import choose_golden_inputs
from exporter.bundle.manifest import MANIFEST_NAME, write_manifest
from exporter.bundle.report import Report, write_report
from exporter.errors import UsageError
from exporter.jobs.shared.clock import Clock
from exporter.jobs.shared.making import make_and_prove, suspects_of
from exporter.jobs.shared.opening import Opened, float_graph, open_model
from exporter.jobs.shared.report import report_of
from exporter.jobs.shared.settle import Settling, settle_all
from exporter.progress import Progress
from exporter.recipe.planning import Plan
from exporter.stages.bundle import write_bundle
from exporter.stages.gates import require_passed
from exporter.system.files import appear_at_once, hold_lock, scratch_folder, write_bytes, write_json

if TYPE_CHECKING:
    from exporter.compress.steps import Compressed

TORCH_FOLDER = "torch"
"""Where a build puts the compressed torch model, beside the targets' bundles."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Where a build went and what it reports."""

    path: Path
    report: Report


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
                run = _Run(plan, workdir, saved, resume, Clock(progress), log)
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
    with scratch_folder("training") as workdir:
        run = _Run(plan, workdir, kept_compression(plan, out), resume, Clock(progress), log)
        compress_model(run, open_model(plan, clock=run.clock, log=log))


@dataclass(frozen=True, slots=True)
class _Run:
    """One build under way: `workdir` is gone after it, `saved` outlives a build that was killed."""

    plan: Plan
    workdir: Path
    saved: Path
    resume: bool
    clock: Clock
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


def _build_into(run: _Run, staging: Path) -> Report:
    from calibration.preprocess import describe_preprocess, preprocess_from_dict

    plan, workdir, clock = run.plan, run.workdir, run.clock
    inputs = record_inputs(plan)
    opened = open_model(plan, clock=clock, log=run.log)
    compressed = compress_model(run, opened)
    if compressed is not None:
        opened = Opened(plan, compressed.source, opened.data)
    baseline = None if compressed is None else compressed.original.score
    graph = float_graph(opened, workdir, clock=clock, baseline=baseline)
    source, data = graph.source, graph.data
    with clock.stage("calibrating", len(data.calibration or ())) as advance:
        settling = settle_all(graph, workdir / "recovery", progress=clock.progress, calibrated=advance)
    contract = preprocess_from_dict(plan.recipe.data.preprocess)
    golden, unpictured = choose_golden_inputs(data.samples, contract)
    model = plan.recipe.model
    metadata = file_metadata(
        source.name, model.version, describe_preprocess(contract), data.class_names, model.license
    )
    proven = make_and_prove(graph, settling, workdir, clock=clock, metadata=metadata, golden=golden)
    report = report_of(
        graph, settling, proven, seconds=clock.seconds, findings=unpictured, compressed=compressed
    )
    require_passed(proven.gates, report, suspects_of(graph, settling, proven))
    facts = gather_facts(plan, source, data, settling.statistics, report)
    with clock.stage("writing bundles", len(plan.targets)) as advance:
        for number, name in enumerate(plan.targets, start=1):
            write_bundle(
                plan, name, facts, proven.artifacts, proven.evidence, proven.reference, staging / name
            )
            advance(number)
    if compressed is not None:
        _write_torch(compressed, staging / TORCH_FOLDER)
    _write_kept_layers(settling, staging)
    write_report(staging, report)
    write_provenance(staging, provenance_of(plan, facts, inputs, staging))
    write_manifest(staging, {"name": plan.recipe.model.name, "version": plan.recipe.model.version})
    return report


def compress_model(run: _Run, opened: Opened) -> Compressed | None:
    """Return the model after the recipe's `[[compress]]`, or `None` if it has none."""
    if not run.plan.recipe.compress:
        return None
    from exporter.compress.base import Workshop
    from exporter.compress.steps import compress
    from exporter.stages.measure import TimedMeter

    workshop = Workshop(
        original=opened.source,
        recipe=run.plan.recipe,
        training=opened.data.training,
        calibration=opened.data.calibration,
        folder=run.saved,
        progress=run.clock.progress,
        meter=TimedMeter(opened.data.judging),
        resume=run.resume,
    )
    with run.clock.stage("compressing"):
        return compress(workshop)


def _write_kept_layers(settling: Settling, folder: Path) -> None:
    """Write what each scheme spared as a list that a recipe's `quantize.keep_from` can name."""
    for scheme, item in settling.schemes.items():
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

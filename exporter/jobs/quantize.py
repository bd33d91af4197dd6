"""The quantiser alone: an ONNX file and data in, a quantised ONNX file and its report out; no recipe, no bundle.

The same stages as a build, in the same order, on a plan of one artifact for this host.
"""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifacts import Artifact
from exporter.errors import UsageError
from exporter.formats.base import ProduceRequest
from exporter.formats.producers import produce
from exporter.jobs.shared.host import HostTarget
from exporter.progress import Progress
from exporter.recipe.planning import Plan, make_plan
from exporter.recipe.recipe import recipe_of
from exporter.schemes import Scheme
from exporter.system.files import disk_errors, scratch_folder, size_bytes, write_bytes
from targets.base import Target

BLAMED_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Quantizing:
    """What to quantise and how: tables as a recipe has them under `[data]` and `[quantize]`."""

    model: Path
    out: Path
    data: Mapping[str, Any]
    quantize: Mapping[str, Any]
    min_sqnr_db: float | None = None


def plan_of(request: Quantizing) -> Plan:
    """Return the plan of the one artifact; raises what a recipe and a plan raise, and `UsageError` for its paths."""
    if request.out.suffix.lower() != ".onnx":
        raise UsageError(f"--out {request.out} is not an .onnx file", fix="name it like quantised.onnx")
    if request.out.exists() and request.model.exists() and request.out.samefile(request.model):
        raise UsageError(f"--out {request.out} is the model itself", fix="name another file")
    if request.model.suffix.lower() != ".onnx":
        raise UsageError(
            f"{request.model} is not an .onnx file",
            fix="give an .onnx file, or build a recipe: edge-export init",
        )
    scheme = Scheme.parse(str(request.quantize.get("scheme", "static_wi8_ai8")))
    tables: dict[str, Any] = {
        "model": {"name": _name_of(request.model), "version": "0.0.0", "path": str(request.model.absolute())},
        "data": dict(request.data),
        "quantize": dict(request.quantize),
        "targets": {"host": {"artifacts": [f"onnx:{scheme}"]}},
    }
    if request.min_sqnr_db is not None:
        tables["gates"] = {"min_sqnr_db": request.min_sqnr_db}
    recipe = recipe_of(tables, "quantize", folder=Path.cwd())
    host: Target = HostTarget()
    return make_plan(recipe, {"host": host})


def quantize_file(plan: Plan, request: Quantizing, *, progress: Progress, log: Path) -> dict[str, Any]:
    """Write `request.out` (and nothing unless every gate holds) and return the report.

    Weights past protobuf's limit go to a file beside it. Raises any `EdgeError`.
    """
    from exporter.jobs.shared.agreement import examined
    from exporter.jobs.shared.opening import sized_by, with_any_axes
    from exporter.jobs.shared.settle import settle_all
    from exporter.model.onnx_read import carried_metadata
    from exporter.model.onnx_write import save_onnx
    from exporter.model.tidy import tidy
    from exporter.model.to_onnx import to_onnx
    from exporter.runtimes.onnxruntime_cpu import OnnxModel
    from exporter.stages.blame import worst_layers
    from exporter.stages.data import read_data
    from exporter.stages.gates import first_failure, judge, require_passed
    from exporter.stages.load import load
    from exporter.stages.report import report_document
    from exporter.stages.size_notes import explain_sizes
    from exporter.stages.validate import edge_cases, make_reference, validate

    seconds: dict[str, float] = {}
    started = time.monotonic()
    spec = plan.artifacts[0].spec
    with scratch_folder("quantize") as workdir:
        with progress.step("loading the model"):
            source = load(with_any_axes(plan), log=log)
            onnx = workdir / "float32.onnx"
            save_onnx(tidy(to_onnx(source), source.inputs), onnx)
        with progress.step("reading data"):
            data = read_data(plan, source)
            source = sized_by(next(iter(data.samples)), source)
        for finding in data.findings:
            progress.say(finding)
        seconds["loading"] = time.monotonic() - started
        started = time.monotonic()
        with progress.step("calibrating", len(data.calibration or ())) as advance:
            settled, statistics = settle_all(
                plan, source, onnx, data, workdir / "recovery", progress, advance
            )
        seconds["calibrating"] = time.monotonic() - started
        started = time.monotonic()
        with progress.step(f"making {spec}"):
            artifact = produce(
                ProduceRequest(
                    spec=spec,
                    model_name=source.name,
                    onnx=settled[spec.scheme].onnx,
                    program=None,
                    inputs=source.inputs,
                    outputs=OnnxModel(onnx).outputs,
                    axes=source.axes,
                    samples=None,
                    rule=plan.recipe.quantize.rule,
                    destination=workdir,
                    workdir=workdir,
                    encodings=settled[spec.scheme].encodings,
                    metadata=carried_metadata(request.model),
                )
            )
        seconds["making"] = time.monotonic() - started
        started = time.monotonic()
        with progress.step("validating", 2) as advance:
            reference = make_reference(
                onnx,
                data.samples,
                edge_cases(source.inputs, source.axes, data.samples),
                metric_name=data.metric_name,
                metric=data.metric,
                labels=data.labels,
                workdir=workdir / "reference",
            )
            advance(1)
            evidence = {spec: validate(artifact, reference, workdir=workdir / "validation")}
        seconds["validating"] = time.monotonic() - started
        artifacts = explain_sizes({spec: artifact}, size_bytes(onnx))
        artifacts, evidence, numeric = examined(artifacts, evidence, onnx, {})
        gates = (*judge(plan, artifacts, evidence), *numeric)
        recoveries = tuple(item.recovery for item in settled.values() if item.recovery is not None)
        report = report_document(
            plan, source, onnx, statistics, artifacts, evidence, reference.record, gates, data.findings,
            data.source, seconds, recoveries=recoveries,
        )  # fmt: skip
        suspects: dict[str, float] = {}
        if first_failure(gates) is not None and spec.scheme.needs_calibration:
            few = list(itertools.islice(data.samples, BLAMED_SAMPLES))
            losses = worst_layers(settled[spec.scheme].onnx, artifact.path, few)
            suspects = {loss.layer: loss.lost_db for loss in losses}
        require_passed(gates, report, suspects)
        _publish(artifacts[spec], request.out)
    return report


def _publish(artifact: Artifact, out: Path) -> None:
    """Put the file under its final name, its weights' file first: a model without its weights must not appear."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if not artifact.companions:
        write_bytes(out, artifact.path.read_bytes())
        return
    # The model names its weights' file: both keep the names that they refer to each other by.
    for companion in artifact.companions:
        shutil.copyfile(companion, out.parent / companion.name)
    write_bytes(out, artifact.path.read_bytes())


def _name_of(path: Path) -> str:
    """Return a recipe's name for a model file: lower case, what is not portable replaced."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")
    return re.sub(r"\.{2,}", ".", name)[:100] or "model"

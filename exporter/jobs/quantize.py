"""The quantiser alone: an ONNX file and data in, a quantised ONNX file and its report out; no recipe, no bundle.

The same steps as a build, in the same order, on a plan of one artifact for this host.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifacts import Artifact
from exporter.bundle.report import Report
from exporter.errors import UsageError
from exporter.jobs.shared.clock import Clock
from exporter.jobs.shared.host import HostTarget
from exporter.progress import Progress
from exporter.recipe.planning import Plan, make_plan
from exporter.recipe.recipe import recipe_of
from exporter.schemes import Scheme
from exporter.system.files import disk_errors, scratch_folder, write_bytes
from targets.base import Target


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


def quantize_file(plan: Plan, request: Quantizing, *, progress: Progress, log: Path) -> Report:
    """Write `request.out` (and nothing unless every gate holds) and return the report.

    Weights past protobuf's limit go to a file beside it. Raises any `EdgeError`.
    """
    from exporter.jobs.shared.making import make_and_prove, suspects_of
    from exporter.jobs.shared.opening import float_graph, open_model
    from exporter.jobs.shared.report import report_of
    from exporter.jobs.shared.settle import settle_all
    from exporter.model.onnx_read import carried_metadata
    from exporter.stages.gates import require_passed

    clock = Clock(progress)
    with scratch_folder("quantize") as workdir:
        opened = open_model(plan, clock=clock, log=log, axes_from_data=True)
        graph = float_graph(opened, workdir, clock=clock)
        with clock.stage("calibrating", len(graph.data.calibration or ())) as advance:
            settling = settle_all(graph, workdir / "recovery", progress=progress, calibrated=advance)
        proven = make_and_prove(
            graph, settling, workdir, clock=clock, metadata=carried_metadata(request.model)
        )
        report = report_of(graph, settling, proven, seconds=clock.seconds)
        require_passed(proven.gates, report, suspects_of(graph, settling, proven))
        _publish(proven.artifacts[plan.artifacts[0].spec], request.out)
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

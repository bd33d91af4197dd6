"""The one opening of every job: a plan → the model and its data → the tidy float graph that all else starts from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.jobs.shared.clock import Clock
from exporter.model.capture import save_program
from exporter.model.source import SourceModel
from exporter.model.to_onnx import check_parity
from exporter.recipe.planning import Plan
from exporter.stages.data import BuildData, read_data
from exporter.stages.load import load
from exporter.stages.measure import export

PARITY_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Opened:
    """A model as it was brought in, and the data that the recipe names for it."""

    plan: Plan
    source: SourceModel
    data: BuildData


@dataclass(frozen=True, slots=True)
class FloatGraph:
    """The tidy float graph `onnx` of a model: from here on there is one, whatever the model came as.

    `program` is the torch program of fixed shapes that converters start from (`None`: nobody wants one, or the model
    came as ONNX); `baseline` is the score that drops are counted from (`None`: that of `onnx` itself).
    """

    plan: Plan
    source: SourceModel
    data: BuildData
    onnx: Path
    program: Path | None = None
    baseline: float | None = None


def open_model(
    plan: Plan,
    *,
    clock: Clock,
    log: Path,
    axes_from_data: bool = False,
    heed: Callable[[str], bool] = lambda _finding: True,
) -> Opened:
    """Bring the model in, and the data; tell of what was noticed where `heed` says that it matters.

    With `axes_from_data` the first sample says how long the named axes of an ONNX file are, not the recipe. `log`
    receives what user code prints. Raises what loading a model and reading data raise.
    """
    with clock.stage("loading the model"):
        source = load(_with_any_axes(plan) if axes_from_data else plan, log=log)
    with clock.stage("reading data"):
        data = read_data(plan, source)
        if axes_from_data:
            source = _sized_by(next(iter(data.samples)), source)
    for finding in filter(heed, data.findings):
        clock.progress.say(finding)
    return Opened(plan, source, data)


def float_graph(opened: Opened, workdir: Path, *, clock: Clock, baseline: float | None = None) -> FloatGraph:
    """Write the tidy float graph, check it against torch on the spot, and capture the program that converters want.

    Raises what exporting raises, and `GateError` (14) for a graph that answers other than the module.
    """
    plan, source = opened.plan, opened.source
    with clock.stage("exporting to ONNX"):
        onnx = export(source, workdir / "float32.onnx")
    program = None
    if source.module is not None:
        with clock.stage("checking the export against torch"):
            check_parity(source, onnx, list(itertools.islice(opened.data.samples, PARITY_SAMPLES)))
        if plan.needs_program:
            with clock.stage("capturing the program for LiteRT and Core ML"):
                program = save_program(source, workdir / "program.pt2")
    return FloatGraph(plan, source, opened.data, onnx, program, baseline)


def _with_any_axes(plan: Plan) -> Plan:
    """Return `plan` with a size for every named axis of the model: the data will say which."""
    from exporter.model.onnx_read import read_onnx, tensor_specs

    recipe = plan.recipe
    inputs, _ = tensor_specs(read_onnx(recipe.resolve(recipe.model.path or Path()), load_weights=False))
    named = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    model = recipe.model.model_copy(update={"axes": dict.fromkeys(sorted(named), 1)})
    return dataclasses.replace(plan, recipe=recipe.model_copy(update={"model": model}))


def _sized_by(sample: Mapping[str, np.ndarray], source: SourceModel) -> SourceModel:
    """Return `source` with its named axes as long as they are in `sample`, which is its example from here on."""
    axes = {
        axis: size
        for spec in source.inputs
        for axis, size in zip(spec.shape, np.shape(sample[spec.name]), strict=False)
        if isinstance(axis, str)
    }
    return dataclasses.replace(source, axes=axes, example=dict(sample))

"""The real evaluation of a variant: compress, export, make the one artifact, run it, and measure.

Like the pipeline this module passes nouns from stage to stage; unlike it, it makes one file for this host,
judges it on the data that chooses, and bundles nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Format, Shapes
from exporter.compress.base import Workshop
from exporter.compress.steps import compress
from exporter.errors import GateError, InputError
from exporter.jobs.shared.clock import Clock
from exporter.jobs.shared.host import HostTarget
from exporter.jobs.shared.making import make_artifacts
from exporter.jobs.shared.opening import FloatGraph
from exporter.jobs.shared.settle import settle_all
from exporter.judging.metrics import Metric, compare_outputs
from exporter.model.capture import save_program
from exporter.model.source import SourceModel
from exporter.progress import Progress, Silence
from exporter.recipe.compression import DistillTable, PruneTable, QatTable, training_of
from exporter.recipe.planning import Plan, make_plan
from exporter.recipe.recipe import Recipe
from exporter.recipe.tune import TuneTable
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.runtimes.race import race
from exporter.runtimes.worker import read_samples, run_artifact, write_sample
from exporter.schemes import Scheme
from exporter.search.metering import Exports, TrialMeter, files_of
from exporter.search.trial import Report, TrialFigures
from exporter.stages.data import BuildData, read_data
from exporter.stages.load import load
from exporter.stages.measure import deflated_bytes
from exporter.system.files import size_bytes
from exporter.system.user_code import load_callable
from targets.base import Target

ON_THE_TEST_SET = (
    "no data.validation: trials are judged on data.evaluation, so the search fits that set, and the metric of the "
    "chosen point is too good; hold some labelled samples out as data.validation"
)


def artifact_of(recipe: Recipe, table: TuneTable) -> ArtifactSpec:
    """Return the artifact that a variant is judged by: as `[tune] artifact` spells it, or with `quantize.scheme`."""
    body, _, suffix = table.artifact.partition("@")
    if ":" in body:
        return ArtifactSpec.parse(table.artifact)
    shapes = Shapes.FIXED if suffix or Format(body).needs_torch else Shapes.DYNAMIC
    return ArtifactSpec(Format(body), Scheme.parse(recipe.quantize.scheme), shapes)


def plan_of(recipe: Recipe, table: TuneTable) -> Plan:
    """Return the plan of making a variant's one artifact for this host.

    What chooses must not be what judges the result in the end: `data.validation`, where there is one, takes the
    place of `data.evaluation`, which no trial sees. Raises what `make_plan` raises.
    """
    data = recipe.data
    if data.validation is not None:
        data = data.model_copy(update={"evaluation": data.validation})
    wanted = {"host": {"artifacts": [str(artifact_of(recipe, table))]}}
    target: Target = HostTarget()
    return make_plan(recipe.model_copy(update={"data": data, "targets": wanted}), {"host": target})


class PipelineEvaluation:
    """`exporter.search.trial.Evaluate` by this project's own stages; the model and its data are read once."""

    def __init__(
        self, recipe: Recipe, table: TuneTable, *, scratch: Path, progress: Progress, log: Path
    ) -> None:
        """Load the recipe's model and data; raises what loading and reading raise. `scratch` lives as long as this."""
        plan = plan_of(recipe, table)
        self._table, self._progress, self._log = table, progress, log
        with progress.step("loading the model"):
            self._source = load(plan, log=log)
        with progress.step("reading data"):
            self._data = read_data(plan, self._source)
        for finding in (*self._data.findings, *(() if recipe.data.validation else (ON_THE_TEST_SET,))):
            progress.say(finding)
        self._measure_artifact = user_measure(table, recipe.folder)
        self._references: list[Mapping[str, np.ndarray]] | None = None
        self._original_ms: float | None = None
        self._scratch = scratch
        self._exports = Exports(self._source, scratch / "original.onnx")
        self._meters = {timed: TrialMeter(self._exports, timed) for timed in (False, True)}

    @property
    def metric_name(self) -> str | None:
        """What the metric is called; `None` without labels, where agreement with the float model stands for it."""
        return self._data.metric_name

    def original(self, folder: Path) -> TrialFigures:
        """Return the figures of the model as it was loaded, in float."""
        onnx = self._exports.original
        spec = ArtifactSpec(Format.ONNX, Scheme.parse("float32"))
        artifact = Artifact(spec, onnx, sum(map(size_bytes, files_of(onnx))), "", (), (), Coverage(()))
        return self._figures(artifact, onnx, folder, judged=True)

    def compare_with(self, original: TrialFigures) -> None:
        """Scale every latency by how long the original takes now against `original`, when the study began.

        So neither what else the host does at the time of a trial, nor a faster host that joins, looks like a gain.
        """
        self._original_ms = original.latency_ms

    def screen(self, recipe: Recipe, folder: Path) -> TrialFigures | None:
        """Return the figures of the artifact with its structural changes made and nothing trained."""
        if not self._may_save_training(recipe):
            return None
        plan = plan_of(_untrained(recipe), self._table)
        source = self._compressed(plan, self._data, folder, Silence())
        onnx = self._exports.of(source, folder / "float32.onnx")
        return self._figures(self._artifact(plan, source, onnx, folder), onnx, folder, judged=False)

    def _may_save_training(self, recipe: Recipe) -> bool:
        """Whether a look before training can end a trial: there is a limit, or enough epochs to be compared in."""
        trainings = [training_of(step, recipe.training) for step in recipe.compress]
        epochs = [training.epochs for training in trainings if training is not None]
        limited = self._table.limits.model_dump(exclude={"min_metric"}, exclude_none=True)
        return bool(epochs) and (
            bool(limited) or (self._table.early_stop and sum(epochs) > self._table.patience)
        )

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
        """Return the figures of the variant's artifact, with its metric on the data that chooses."""
        plan = plan_of(recipe, self._table)
        source = self._compressed(plan, _overheard(self._data, report), folder, self._progress)
        onnx = self._exports.of(source, folder / "float32.onnx")
        with self._progress.step("making and measuring the artifact"):
            return self._figures(self._artifact(plan, source, onnx, folder), onnx, folder, judged=True)

    # --- stages ------------------------------------------------------------------------------------------

    def _compressed(self, plan: Plan, data: BuildData, folder: Path, progress: Progress) -> SourceModel:
        if not plan.recipe.compress:
            return self._source
        timed = any(
            isinstance(step, PruneTable) and step.latency_ms is not None for step in plan.recipe.compress
        )
        workshop = Workshop(
            original=self._source,
            recipe=plan.recipe,
            training=data.training,
            calibration=data.calibration,
            folder=folder / "steps",
            progress=progress,
            meter=self._meters[timed],
        )
        return compress(workshop).source

    def _artifact(self, plan: Plan, source: SourceModel, onnx: Path, folder: Path) -> Artifact:
        program = save_program(source, folder / "program.pt2") if plan.needs_program else None
        graph = FloatGraph(plan, source, self._data, onnx, program)
        settling = settle_all(graph, folder / "recovery", progress=Silence(), climbs=False)
        made = make_artifacts(graph, settling, folder, clock=Clock(Silence()), metadata={})
        return made[plan.artifacts[0].spec]

    def _figures(self, artifact: Artifact, onnx: Path, folder: Path, *, judged: bool) -> TrialFigures:
        """Run the artifact and return what it measures; `judged` says whether its answers mean anything yet."""
        graph = self._exports.figures(onnx)
        return TrialFigures(
            size_bytes=artifact.size_bytes,
            download_bytes=sum(deflated_bytes(path) for path in (artifact.path, *artifact.companions)),
            latency_ms=self._latency_ms(artifact, folder),
            macs=graph.macs,
            parameters=graph.parameters,
            metric=self._score(self._answers(artifact, folder)) if judged else None,
            device=self._measure_artifact(artifact.path) if judged and self._measure_artifact else {},
        )

    def _latency_ms(self, artifact: Artifact, folder: Path) -> float:
        """Return the median of single inferences, one thread, timed in turns with the original's."""
        entrants = [(self._exports.original, Format.ONNX), (artifact.path, artifact.spec.format)]
        original_ms, own_ms = race(entrants, [self._source.example] * 2, folder)
        return own_ms if self._original_ms is None else own_ms * self._original_ms / original_ms

    def _answers(self, artifact: Artifact, folder: Path) -> list[dict[str, np.ndarray]]:
        """Return what the artifact answers to every sample, run in a process of its own."""
        inputs, outputs = folder / "inputs", folder / "outputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(self._data.samples):
            write_sample(inputs, number, sample)
        log = folder / "running.log"
        run_artifact(artifact.path, artifact.spec.format, inputs, outputs, log=log, timed=False)
        return list(read_samples(outputs))

    def _score(self, answers: Sequence[Mapping[str, np.ndarray]]) -> float | None:
        """Return the recipe's metric, or without labels the share of samples answered as the original does."""
        named = [_named(answer, want) for answer, want in zip(answers, self._original_answers(), strict=True)]
        if self._data.metric is not None and self._data.labels is not None:
            return self._data.metric(named, self._data.labels)
        return compare_outputs(self._original_answers(), named).agreement

    def _original_answers(self) -> list[Mapping[str, np.ndarray]]:
        """Return what the model as loaded answers to every sample, under the names its export gives."""
        if self._references is None:
            model = OnnxModel(self._exports.original)
            self._references = [model.run(sample) for sample in self._data.samples]
        return self._references


def _named(answer: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `answer` under the names and shapes of `want`: other formats name outputs their own way."""
    if len(answer) != len(want):
        raise GateError(
            f"the artifact has {len(answer)} outputs ({', '.join(answer)}), the model {len(want)}",
            fix="report this model as a bug",
        )
    ordered = answer.values() if set(answer) != set(want) else [answer[name] for name in want]
    return {name: array.reshape(want[name].shape) for name, array in zip(want, ordered, strict=True)}


def _untrained(recipe: Recipe) -> Recipe:
    """Return `recipe` with the steps that change what a file looks like, none of them trained.

    Distillation and quantisation-aware training change weights alone; a sparsity pattern needs none to be set,
    and matters to the download.
    """
    kept = [step for step in recipe.compress if not isinstance(step, DistillTable | QatTable)]
    bare = tuple(step.model_copy(update={"train": None}) for step in kept)
    return recipe.model_copy(update={"compress": bare})


def _overheard(data: BuildData, report: Report) -> BuildData:
    """Return `data` whose metric tells `report` of every validation of a training."""
    training = data.training
    if training is None or training.metric is None:
        return data
    metric: Metric = training.metric

    def told(outputs: Sequence[Mapping[str, np.ndarray]], labels: np.ndarray) -> float:
        value = metric(outputs, labels)
        report(value)
        return value

    return dataclasses.replace(data, training=dataclasses.replace(training, metric=told))


def user_measure(table: TuneTable, folder: Path) -> Callable[[Path], dict[str, float]] | None:
    """Return the user's `measure`, so that whatever goes wrong in it is an `InputError` that names it."""
    if table.measure is None:
        return None
    reference = table.measure
    fix = "make it take the artifact's path and return a dict of floats"
    measure = load_callable(reference, folder, key="tune.measure", fix=fix)

    def as_floats(path: Path) -> dict[str, float]:
        return {str(name): float(value) for name, value in dict(measure.function(path)).items()}

    def measured(path: Path) -> dict[str, float]:
        figures = measure.guard(as_floats, path)
        for name, value in figures.items():
            if not math.isfinite(value):
                raise InputError(
                    f"tune.measure {reference} returned {name} = {value}", fix="return finite numbers"
                )
        return figures

    return measured

"""`method = "distill"`: the model as it is now learns from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from exporter.compress.base import StepResult, Workshop
from exporter.compress.distill.layers import LayerPair, map_layers, trace
from exporter.compress.distill.objective import DistillObjective
from exporter.compress.retraining import recovery_of
from exporter.errors import CalibrationError, UnsupportedError
from exporter.model.factory import call_factory
from exporter.model.source import SourceModel
from exporter.model.state_dict import load_weights, require_sane_weights
from exporter.recipe.compression import DistillTable
from exporter.training.data import take
from exporter.training.objectives import require_same_shapes, settle_loss

_PROBED_SAMPLES = 2


def distill(source: SourceModel, table: DistillTable, workshop: Workshop) -> StepResult:
    """Return `source` trained to answer, and where the table says so to think, as its teacher does.

    The teacher is the model as the recipe loaded it, or the table's own. Labels are used where there are any.
    `details["layers"]` lists which layer learned from which, and by which attention.

    Raises `CalibrationError` (13) without training data, `UnsupportedError` (12) when student and teacher give
    outputs of different shapes or have no layers in common, `RecipeError` (2) for unknown layers, `InputError`
    (10) for the teacher's factory or weights, and what training raises.
    """
    training = recovery_of(table, workshop)
    if source.module is None or training is None or workshop.training is None:
        raise CalibrationError(
            "distillation has nothing to train", fix="give a torch model and training data"
        )
    data = workshop.training
    student, teacher = copy.deepcopy(source.module), _teacher(table, workshop)
    rows = np.arange(min(_PROBED_SAMPLES, len(data)))
    inputs = take(data.training, None, rows, data.inputs).inputs
    seen = trace(student, inputs), trace(teacher, inputs)
    require_same_shapes(seen[0].outputs, seen[1].outputs)
    pairs: tuple[LayerPair, ...] = ()
    if table.feature or table.attention:
        pairs = map_layers(student, teacher, seen, table.layers)
    loss = settle_loss(training, data, workshop.recipe.folder)
    objective = DistillObjective(student, teacher, table, training, loss, pairs, seen)
    if table.attention and not objective.attention:
        raise UnsupportedError(
            "the layers in distill.layers differ in kind or in tokens, so their attention cannot be compared",
            fix="map feature maps to feature maps and blocks to blocks, or set attention to 0",
        )
    record = workshop.train(student, training, "distill", objective=objective)
    return StepResult(
        source=replace(source, module=student, ranges={}),
        edit={"kind": "distill"},
        trainings=(record,),
        notes=_notes(table, objective, labelled=data.labelled),
        details=_details(source, teacher, table, objective, pairs),
    )


def replay(module: nn.Module, edit: Mapping[str, Any], source: SourceModel) -> nn.Module:  # noqa: ARG001
    """Return `module`: learning changes weights, and no structure."""
    return module


def _teacher(table: DistillTable, workshop: Workshop) -> nn.Module:
    if table.teacher is None:
        if workshop.original.module is None:
            raise UnsupportedError(
                "the model came as ONNX and cannot teach", fix="give the teacher as a factory: teacher = …"
            )
        return workshop.original.module
    recipe = workshop.recipe
    log = workshop.folder / "teacher.log"
    timeout_s = recipe.model.load_timeout_s
    module = call_factory(table.teacher, recipe.folder, timeout_s, log, key="distill.teacher").eval()
    if table.teacher_weights is not None:
        load_weights(module, recipe.resolve(table.teacher_weights), model=f"the teacher {table.teacher}")
    require_sane_weights(module)
    return module


def _notes(table: DistillTable, objective: DistillObjective, *, labelled: bool) -> tuple[str, ...]:
    notes = []
    if table.hard and not labelled:
        notes.append("the training data has no labels: the student learned from its teacher alone")
    if table.relation and objective.heads is None:
        notes.append("relations were taken between the outputs themselves: no linear layer gives the classes")
    if table.teacher is not None and table.teacher_weights is None:
        notes.append(f"the teacher {table.teacher} was taken with the weights that its factory gave it")
    return tuple(notes)


def _details(
    source: SourceModel,
    teacher: nn.Module,
    table: DistillTable,
    objective: DistillObjective,
    pairs: tuple[LayerPair, ...],
) -> dict[str, Any]:
    weights = {name: getattr(table, name) for name in ("hard", "soft", "feature", "attention", "relation")}
    return {
        "teacher": table.teacher or "the original model",
        "teacher_parameters": sum(parameter.numel() for parameter in teacher.parameters()),
        "student_parameters": sum(parameter.numel() for parameter in (source.module or teacher).parameters()),
        "losses": {name: weight for name, weight in weights.items() if weight},
        "layers": [asdict(pair) for pair in pairs],
        "attention": [asdict(pair) for pair in objective.attention],
        "embeddings": None if objective.heads is None else list(objective.heads),
    }

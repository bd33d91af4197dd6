"""`method = "student"`: a small network with the model's own inputs and outputs takes its place."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.compress.base import StepResult, Workshop
from exporter.errors import CalibrationError, InputError, RecipeError, UnsupportedError, said
from exporter.model.factory import call_factory
from exporter.model.source import SourceModel
from exporter.model.state_dict import load_weights, require_sane_weights
from exporter.recipe.compression import DistillTable, StudentTable, training_of
from exporter.students.catalogue import Family, Takes, build_student, complete_options, family_of
from exporter.students.fit import IDS, token_inputs
from exporter.system.user_code import user_line
from exporter.training.record import TrainingRecord


def student(source: SourceModel, table: StudentTable, workshop: Workshop) -> StepResult:
    """Return a student with the names, axes and output shapes of `source`, its weights from file or seed.

    The number of classes is that of the model's output on its example; an encoder's vocabulary is that of the
    table which the model itself looks its token ids up in. Weights are drawn from `training.seed`.

    Raises `RecipeError` (2) for unknown families and options, `InputError` (10) for weights or a factory that
    do not fit, `UnsupportedError` (12) for inputs or outputs that the student does not have,
    `CalibrationError` (13) when it is to be trained and there is no data.
    """
    edit = _edit(source, table, workshop)
    timeout_s = workshop.recipe.model.load_timeout_s
    module = _build(edit, timeout_s=timeout_s, log=workshop.folder / "factory.log")
    name = f"student {table.family or table.factory}"
    if table.weights is not None:
        load_weights(module, workshop.recipe.resolve(table.weights), model=name)
    require_sane_weights(module)
    _require_same_outputs(source, replace(source, module=module), name)
    training = training_of(table, workshop.recipe.training)
    if training is not None and workshop.training is None:
        raise CalibrationError(
            f"{name} is to be trained, and the recipe gives no training data",
            fix='add [data] training = { source = "npz", path = "…", labels = "label" }, or train = false',
        )
    changed: SourceModel | None = None
    trainings: tuple[TrainingRecord, ...] = ()
    if training is not None:
        changed = replace(source, module=copy.deepcopy(module), ranges={})
        trainings = (workshop.train(module, training, "student"),)
    return StepResult(
        source=replace(source, module=module.eval(), ranges={}),
        edit=edit,
        changed=changed,
        trainings=trainings,
        notes=_notes(name, table, workshop) if training is None else (),
        details=_details(edit, module, source),
    )


def replay(module: nn.Module, edit: Mapping[str, Any], source: SourceModel) -> nn.Module:  # noqa: ARG001
    """Return a student of the structure that `edit` describes; nothing of `module` is used."""
    return _build(edit, timeout_s=300.0, log=Path(os.devnull))


def _edit(source: SourceModel, table: StudentTable, workshop: Workshop) -> dict[str, Any]:
    """Return all that the student's structure follows from, as JSON data."""
    if table.family is None:
        # The folder is told as well: a factory's file is relative to its recipe.
        return {"kind": "student", "factory": table.factory, "folder": str(workshop.recipe.folder)}
    family = family_of(table.family)
    given = dict(table.options)
    complete_options(family, given)  # a typing error is told before anything is run
    if family.takes is Takes.TOKENS and "vocabulary" not in given:
        given["vocabulary"] = _vocabulary_of(source, family, complete_options(family, given))
    return {
        "kind": "student",
        "family": family.name,
        "inputs": [_plain(spec) for spec in source.inputs],
        "outputs": [_plain(spec) for spec in _output_specs(source)],
        "axes": dict(source.axes),
        "width": table.width,
        "depth": table.depth,
        "options": given,
        "seed": workshop.recipe.training.seed,
    }


def _plain(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _spec(plain: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(plain["name"], plain["dtype"], tuple(plain["shape"]))


def _build(edit: Mapping[str, Any], *, timeout_s: float, log: Path) -> nn.Module:
    if "factory" in edit:
        return call_factory(
            edit["factory"], Path(edit["folder"]), timeout_s, log, key="student.factory"
        ).eval()
    return build_student(
        edit["family"],
        tuple(_spec(plain) for plain in edit["inputs"]),
        tuple(_spec(plain) for plain in edit["outputs"]),
        axes=edit["axes"],
        width=edit["width"],
        depth=edit["depth"],
        options=edit["options"],
        seed=edit["seed"],
    )


def _output_specs(source: SourceModel) -> tuple[TensorSpec, ...]:
    """Return the specs of the model's outputs on its example, with the names of axes that inputs share.

    The first axis is the inputs' first; a second axis of the inputs' length is their second (of tokens).
    """
    arrays = source.forward(source.example)
    first = source.inputs[0]
    fixed = first.fixed(source.axes)
    specs = []
    for number, array in enumerate(arrays):
        shape: list[int | str] = list(array.shape)
        if shape and shape[0] == fixed.shape[0]:
            shape[0] = first.shape[0]
        if len(shape) == 3 and len(fixed.shape) == 2 and shape[1] == fixed.shape[1]:
            shape[1] = first.shape[1]
        name = source.outputs[number] if number < len(source.outputs) else f"output_{number}"
        specs.append(TensorSpec(name, str(array.dtype), tuple(shape)))
    return tuple(specs)


def _vocabulary_of(source: SourceModel, family: Family, options: Mapping[str, Any]) -> int:
    """Return the rows of the table in which the model looks up its token ids."""
    position = token_inputs(family, source.inputs, options).roles.index(IDS)
    feeds = [torch.from_numpy(source.example[spec.name]) for spec in source.inputs]
    rows: list[int] = []

    def look(table: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        # Equal ids could be segment ids too; only the very same memory is the input itself.
        if arguments and arguments[0].data_ptr() == feeds[position].data_ptr():
            rows.append(table.get_parameter("weight").shape[0])

    if source.module is None:
        raise TypeError("this model came as ONNX and has no torch module")
    tables = [layer for layer in source.module.modules() if isinstance(layer, nn.Embedding)]
    hooks = [layer.register_forward_pre_hook(look) for layer in tables]
    try:
        with torch.no_grad():
            source.module(*feeds)
    finally:
        for hook in hooks:
            hook.remove()
    if not rows:
        raise RecipeError(
            f"family {family.name}: how many token ids there are cannot be seen in the model, which looks "
            f"{source.inputs[position].name} up in no nn.Embedding as it is",
            fix="say it in the step: options = { vocabulary = 30522 }",
        )
    return rows[0]


def _require_same_outputs(original: SourceModel, made: SourceModel, name: str) -> None:
    """Raise `UnsupportedError` unless both answer the example with outputs of the same count and shapes."""
    wanted = [array.shape for array in original.forward(original.example)]
    try:
        found = [array.shape for array in made.forward(made.example)]
    except Exception as error:  # forward may be the user's code, and raise anything
        raise InputError(
            f"{name} fails on the model's inputs: {said(error)}{user_line(error)}",
            fix="make its forward take what the model's forward takes, in the same order",
        ) from error
    if wanted != found:
        raise UnsupportedError(
            f"{name} answers with {_shapes(found)}, and the model with {_shapes(wanted)}",
            fix="give a student with the model's own outputs: same number, order and shapes",
        )


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _notes(name: str, table: StudentTable, workshop: Workshop) -> tuple[str, ...]:
    """Return what to say of a student that this step does not train."""
    steps = workshop.recipe.compress
    here = next((number for number, step in enumerate(steps) if step is table), -1)
    follows = any(isinstance(step, DistillTable) for step in steps[here + 1 :])
    if table.weights is not None:
        return ()
    if follows:
        return (f"{name} has random weights until the distill step that follows has trained it",)
    return (
        f"{name} has random weights and nothing trains it: add a distill step after it, or weights or train",
    )


def _details(edit: Mapping[str, Any], module: nn.Module, source: SourceModel) -> dict[str, Any]:
    return {
        **{key: edit[key] for key in ("family", "width", "depth", "options", "factory") if key in edit},
        "parameters": _parameter_count(module),
        "parameters_of_the_model": _parameter_count(source.module),
    }


def _parameter_count(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

"""The opening that jobs share: a model brought in, as long as its data says it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from exporter.model.source import SourceModel
from exporter.recipe.planning import Plan


def with_any_axes(plan: Plan) -> Plan:
    """Return `plan` with a size for every named axis of the model: the data will say which."""
    from exporter.model.onnx_read import read_onnx, tensor_specs

    recipe = plan.recipe
    inputs, _ = tensor_specs(read_onnx(recipe.resolve(recipe.model.path or Path()), load_weights=False))
    named = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    model = recipe.model.model_copy(update={"axes": dict.fromkeys(sorted(named), 1)})
    return dataclasses.replace(plan, recipe=recipe.model_copy(update={"model": model}))


def sized_by(sample: Mapping[str, np.ndarray], source: SourceModel) -> SourceModel:
    """Return `source` with its named axes as long as they are in `sample`, which is its example from here on."""
    axes = {
        axis: size
        for spec in source.inputs
        for axis, size in zip(spec.shape, np.shape(sample[spec.name]), strict=False)
        if isinstance(axis, str)
    }
    return dataclasses.replace(source, axes=axes, example=dict(sample))

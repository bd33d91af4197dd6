"""Plan → SourceModel: bring the user's model in, as data wherever that is possible.

A factory is code that the user named; weights are data (`.safetensors`, or `.pt` read weights-only). Files
that run code while they are read come only with `trust_code`, which planning has checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import InputError, RecipeError, UnsupportedError, said
from exporter.model.factory import call_factory, quiet
from exporter.model.sniff import describe_content
from exporter.model.source import SourceModel
from exporter.model.state_dict import is_torchscript, load_weights, require_sane_weights
from exporter.recipe.planning import Origin, Plan
from exporter.system.files import require_file
from exporter.system.user_modules import importable

if TYPE_CHECKING:
    import onnx
    import torch


def load(plan: Plan, *, log: Path) -> SourceModel:
    """Return the plan's model with example inputs; `log` receives what user code prints.

    Raises `InputError` (10) for files and factories that do not hold a model, `UnsafeError` (11) for weights
    that would run code, `UnsupportedError` (12) for content no stage can take, `GateError` (14) for weights
    that are not finite, `TimeLimitError` (16) for a factory that does not return.
    """
    model = plan.recipe.model
    if plan.origin is Origin.ONNX:
        return _load_onnx_source(plan)
    if plan.origin is Origin.FACTORY:
        module = call_factory(model.factory or "", plan.recipe.folder, model.load_timeout_s, log)
        if model.weights is not None:
            load_weights(module, plan.recipe.resolve(model.weights))
    else:
        with quiet(log), importable(plan.recipe.folder):
            module = _load_trusted(plan.recipe.resolve(model.path or Path()), plan.origin)
    require_sane_weights(module)
    module = module.eval() if plan.origin is not Origin.EXPORTED_PROGRAM else module
    inputs = tuple(table.spec() for table in model.inputs)
    return _with_example(model.name, module, None, inputs, model.outputs, model.axis_sizes(inputs))


def _with_example(
    name: str,
    module: torch.nn.Module | None,
    onnx: Path | None,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    axes: Mapping[str, int],
) -> SourceModel:
    example = {spec.name: _example_array(spec.fixed(axes), index) for index, spec in enumerate(inputs)}
    return SourceModel(name, module, onnx, inputs, outputs, dict(axes), example)


def _example_array(spec: TensorSpec, seed: int) -> np.ndarray:
    """Return a deterministic input: uniform noise for floats, ones for integers and booleans (masks, low ids)."""
    shape = tuple(axis for axis in spec.shape if isinstance(axis, int))
    if np.dtype(spec.dtype).kind == "f":
        return np.random.default_rng(seed).uniform(0, 1, shape).astype(spec.dtype)
    return np.ones(shape, spec.dtype)


def _load_trusted(path: Path, origin: Origin) -> torch.nn.Module:
    import torch

    require_file(path, what="the model")
    if is_torchscript(path):
        raise UnsupportedError(
            f"{path} is a TorchScript archive, which torch.export no longer takes",
            fix="give the Python factory of the model with its weights, or export it with torch.export.save",
        )
    try:
        if origin is Origin.EXPORTED_PROGRAM:
            return torch.export.load(path).module()
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # what was pickled runs code of its own
        raise InputError(
            f"{path} cannot be loaded: {said(error)}; it looks like {describe_content(path)}",
            fix="export it again with the torch that runs here, or give a factory with weights",
        ) from error
    if not isinstance(loaded, torch.nn.Module):
        raise InputError(
            f"{path} holds {type(loaded).__name__}, not a module",
            fix='use it as weights = "…" beside a factory',
        )
    return loaded


# --- ONNX ------------------------------------------------------------------------------------------------


def _load_onnx_source(plan: Plan) -> SourceModel:
    from exporter.model.onnx_read import quantized_operator, read_onnx, tensor_specs

    recipe = plan.recipe
    path = recipe.resolve(recipe.model.path or Path())
    proto = read_onnx(path)
    quantized = quantized_operator(proto)
    if quantized is not None:
        raise UnsupportedError(
            f"{path} is quantised already: it holds {quantized}",
            fix="give the float model that it was made from",
        )
    _refuse_bfloat16(proto, path)
    inputs, outputs = tensor_specs(proto)
    declared = {table.name: table.spec() for table in recipe.model.inputs}
    for name in declared:
        if name not in {spec.name for spec in inputs}:
            raise RecipeError(
                f"model.inputs: {path.name} has no input {name!r}",
                fix=f"its inputs are {', '.join(spec.name for spec in inputs)}",
            )
    for spec in inputs:
        _require_same_kind(declared.get(spec.name, spec), spec, path)
    inputs = tuple(declared.get(spec.name, spec) for spec in inputs)
    axes = recipe.model.axis_sizes(inputs)
    return _with_example(recipe.model.name, None, path, inputs, tuple(s.name for s in outputs), axes)


def _refuse_bfloat16(proto: onnx.ModelProto, path: Path) -> None:
    """Raise `UnsupportedError` for weights in bfloat16, which CPU runtimes store but do not compute with."""
    from onnx import TensorProto

    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            raise UnsupportedError(
                f"{path}: weight {tensor.name} is bfloat16, which no CPU runtime here computes with",
                fix="export the model in float32",
            )


def _require_same_kind(declared: TensorSpec, found: TensorSpec, path: Path) -> None:
    """Raise `RecipeError` unless the recipe's input can be fed to the file's: dtype, rank, fixed axes."""
    fits = len(declared.shape) == len(found.shape) and all(
        isinstance(theirs, str) or ours == theirs
        for ours, theirs in zip(declared.shape, found.shape, strict=True)
    )
    if declared.dtype != found.dtype or not fits:
        raise RecipeError(
            f"model.inputs: {declared.name} is {declared.dtype} {list(declared.shape)} in the recipe and "
            f"{found.dtype} {list(found.shape)} in {path.name}",
            fix="leave it out of the recipe, or write what the file has",
        )

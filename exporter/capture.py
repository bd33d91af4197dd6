"""SourceModel → torch.export programs: one with named axes for ONNX, one of fixed shapes for the rest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import InputError, UnsupportedError
from exporter.source import SourceModel

if TYPE_CHECKING:
    import torch


def capture(source: SourceModel, *, dynamic: bool) -> torch.export.ExportedProgram:
    """Return the exported program of `source`, with its named axes symbolic if `dynamic`, else fixed.

    Raises `UnsupportedError` naming the axis that the model itself pins, or the first line of what
    `torch.export` found it cannot trace.
    """
    import torch

    if source.module is None:
        raise TypeError("this model came as ONNX and has no torch module")
    feeds = _feeds(source, dynamic=dynamic)
    shapes = _dynamic_shapes(source.inputs) if dynamic else None
    arguments = tuple(torch.from_numpy(feeds[spec.name]) for spec in source.inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(source.module, arguments, dynamic_shapes=shapes, strict=False)
    except torch._dynamo.exc.UserError as error:
        raise _refusal(error, source) from error
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, (TypeError, RuntimeError, IndexError)) and not dynamic:
            raise _wrong_inputs(error, source) from error
        raise _refusal(error, source) from error


def save_program(source: SourceModel, path: Path) -> Path:
    """Write the fixed-shape program to `path` (`.pt2`), for converters that run in their own process."""
    import torch

    torch.export.save(capture(source, dynamic=False), path)
    return path


def _feeds(source: SourceModel, *, dynamic: bool) -> Mapping[str, np.ndarray]:
    if not dynamic:
        return source.example
    # torch.export takes an axis of size 1 for a constant: show it two of everything that may vary.
    feeds = {}
    for spec in source.inputs:
        array = source.example[spec.name]
        for position, axis in enumerate(spec.shape):
            if isinstance(axis, str) and array.shape[position] == 1:
                array = np.repeat(array, 2, axis=position)
        feeds[spec.name] = np.ascontiguousarray(array)
    return feeds


def _dynamic_shapes(inputs: tuple[TensorSpec, ...]) -> tuple[dict[int, object], ...]:
    import torch

    dims = {axis: torch.export.Dim(axis) for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    return tuple(
        {position: dims[axis] for position, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in inputs
    )


def _refusal(error: Exception, source: SourceModel) -> UnsupportedError:
    text = str(error)
    axes = sorted({axis for spec in source.inputs for axis in spec.shape if isinstance(axis, str)})
    pinned = next((axis for axis in axes if f"{axis}" in text and "onstraint" in text), None)
    if pinned:
        return UnsupportedError(
            f"model {source.name}: axis {pinned!r} is called dynamic, but the model's code pins it to one size",
            fix=f"write the number in place of {pinned!r} in model.inputs, or make the code use x.shape",
        )
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return UnsupportedError(
        f"torch.export cannot trace model {source.name}: {line[:300]}",
        fix="remove data-dependent Python control flow from forward, or give the model as ONNX",
    )


def _wrong_inputs(error: Exception, source: SourceModel) -> InputError:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    shapes = ", ".join(
        f"{spec.name} {spec.dtype} {list(source.example[spec.name].shape)}" for spec in source.inputs
    )
    return InputError(
        f"model {source.name} fails on inputs of the recipe's shapes ({shapes}): {line[:300]}",
        fix="correct dtype, shape and order in [[model.inputs]] to what forward takes",
    )

"""SourceModel → torch.export programs: one with named axes for ONNX, one of fixed shapes for the rest."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import EdgeError, InputError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.system.files import disk_errors

if TYPE_CHECKING:
    import torch

_BOUNDED_AXIS = re.compile(r"= Dim\(.*\b(max|min)=")


def capture(source: SourceModel, *, dynamic: bool) -> torch.export.ExportedProgram:
    """Return the exported program of `source`, with its named axes symbolic if `dynamic`, else fixed.

    Raises `InputError` if the model fails on inputs of these shapes, traced or not, and otherwise
    `UnsupportedError` naming the axis that the model itself pins, or the first line of what `torch.export`
    cannot trace.
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
            try:
                return torch.export.export(source.module, arguments, dynamic_shapes=shapes, strict=False)
            except torch._dynamo.exc.UserError as error:
                if not _BOUNDED_AXIS.search(str(error)):
                    raise
                # The model holds an axis within a range (at most 512 positions, say): let torch find which.
                shapes = _dynamic_shapes(source.inputs, bounded=True)
                return torch.export.export(source.module, arguments, dynamic_shapes=shapes, strict=False)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # forward is the user's code, and may raise anything
        raise _explanation(error, source, feeds) from error


def save_program(source: SourceModel, path: Path) -> Path:
    """Write the fixed-shape program to `path` (`.pt2`), for converters that run in their own process."""
    import torch

    program = capture(source, dynamic=False)
    with disk_errors(path):
        # torch's own writer turns a full disk into a RuntimeError without a word about the disk.
        content = io.BytesIO()
        torch.export.save(program, content)
        with path.open("wb") as stream:
            stream.write(content.getbuffer())
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


def _dynamic_shapes(
    inputs: tuple[TensorSpec, ...], *, bounded: bool = False
) -> tuple[dict[int, object], ...]:
    import torch

    dims = {
        axis: torch.export.Dim.DYNAMIC if bounded else torch.export.Dim(axis)
        for spec in inputs
        for axis in spec.shape
        if isinstance(axis, str)
    }
    return tuple(
        {position: dims[axis] for position, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in inputs
    )


def _explanation(error: BaseException, source: SourceModel, feeds: Mapping[str, np.ndarray]) -> EdgeError:
    """Return why `feeds` could not be traced, found by running the model without tracing it."""
    failure = _failure_of_forward(source, source.example)
    if failure is not None:
        return _wrong_inputs(failure, source)
    axes = sorted({axis for spec in source.inputs for axis in spec.shape if isinstance(axis, str)})
    if len(axes) == 1 and _failure_of_forward(source, feeds) is not None:
        return _pinned(axes[0], source)
    return _refusal(error, source)


def _failure_of_forward(source: SourceModel, feeds: Mapping[str, np.ndarray]) -> BaseException | None:
    """Return what the model raises when it is simply run on `feeds`, or `None` if it runs."""
    try:
        source.forward(feeds)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - forward is the user's code, and may raise anything
        return error
    return None


def _refusal(error: BaseException, source: SourceModel) -> UnsupportedError:
    text = str(error)
    axes = sorted({axis for spec in source.inputs for axis in spec.shape if isinstance(axis, str)})
    pinned = next((axis for axis in axes if f"{axis}" in text and "onstraint" in text), None)
    if pinned:
        return _pinned(pinned, source)
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return UnsupportedError(
        f"torch.export cannot trace model {source.name}: {line[:300]}",
        fix="remove data-dependent Python control flow from forward, or give the model as ONNX",
    )


def _pinned(axis: str, source: SourceModel) -> UnsupportedError:
    return UnsupportedError(
        f"model {source.name}: axis {axis!r} is called dynamic, but the model's code pins it to one size",
        fix=f"write the number in place of {axis!r} in model.inputs, or make the code use x.shape",
    )


def _wrong_inputs(error: BaseException, source: SourceModel) -> InputError:
    line = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    shapes = ", ".join(
        f"{spec.name} {spec.dtype} {list(source.example[spec.name].shape)}" for spec in source.inputs
    )
    return InputError(
        f"model {source.name} fails on inputs of the recipe's shapes ({shapes}): {line[:300]}",
        fix=f"correct dtype, shape and order in [[model.inputs]] to what forward takes{_batch_hint(source)}",
    )


def _batch_hint(source: SourceModel) -> str:
    if any(spec.shape and isinstance(spec.shape[0], str) for spec in source.inputs):
        return ""
    shape = ", ".join(str(axis) for axis in source.inputs[0].shape)
    return f'; the first axis is usually the batch: shape = ["batch", {shape}]'

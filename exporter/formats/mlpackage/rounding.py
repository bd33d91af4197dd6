"""An ML Program whose int4 weights are chosen already, for coremltools to store as they are.

Runs in a child process. Core ML cannot be run here: what a layer's inputs are is seen on the ONNX graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass

from exporter.arrays import Float32Array
from exporter.formats.calibrated_rounding import Rounded, onnx_moments, round_for_converter, same_layers
from exporter.formats.mlpackage.graph import WEIGHT_OPERANDS, is_stored_float, operations
from exporter.formats.rounded_weights import ConverterWeight


class RoundFourBits(AbstractGraphPass):  # type: ignore[misc]
    """A pass of coremltools that puts constants on the grid from which its quantiser finds the same integers.

    `blocks` are the elements of a row that share a scale, by constant name; `samples` are calibration samples for the
    float graph `onnx`, `None` to round without data. `rounded` is what was done, by constant name.
    """

    def __init__(self, blocks: Mapping[str, int], onnx: Path, samples: Path | None) -> None:
        self._blocks, self._onnx, self._samples = blocks, onnx, samples
        self.rounded = Rounded({}, frozenset())

    def apply(self, prog: Any) -> None:
        """Change the constants of `prog`; `CalibrationError` for samples that the graph does not take."""
        held = {
            weight.name: (operation, weight)
            for operation, weight in reversed(list(weights(prog)))
            if weight.name in self._blocks
        }
        described = [
            ConverterWeight(name, rows, self._blocks[name])
            for name, (operation, weight) in held.items()
            for rows in [_rows(operation, weight)]
            if rows.shape[1] % self._blocks[name] == 0
        ]
        if self._samples is None:
            self.rounded = round_for_converter(described, {}, lambda _: {})
        else:
            graph = ir.load(self._onnx)
            layers = same_layers(described, graph)
            # Weights are float16 by now; the graph has them as they were, and as another converter sees them.
            exact = [replace(w, rows=layers[w.name].rows) if w.name in layers else w for w in described]
            inputs = {name: layer.inputs for name, layer in layers.items()}
            self.rounded = round_for_converter(exact, inputs, onnx_moments(graph, self._samples))
        for name, rows in self.rounded.rows.items():
            operation, weight = held[name]
            _replace(weight, _from_rows(rows, operation, weight))


def weights(program: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every operator with the float constant of two or more dimensions that is its weight."""
    for operation in operations(program):
        weight = operation.inputs.get(WEIGHT_OPERANDS.get(operation.op_type, ""))
        if weight is not None and is_stored_float(weight) and len(weight.shape) >= 2:
            yield operation, weight


def reduced_axis(operation: Any, weight: Any) -> int:
    """Return how many input channels an operator sums over."""
    match operation.op_type:
        case "matmul":
            return int(weight.shape[-1 if _is_flipped(operation) else -2])
        case "conv_transpose":
            return int(weight.shape[0])
    return int(weight.shape[1])


def _is_flipped(operation: Any) -> bool:
    return operation.transpose_y is not None and bool(operation.transpose_y.val)


def _is_by_column(operation: Any) -> bool:
    return operation.op_type == "conv_transpose" or (
        operation.op_type == "matmul" and not _is_flipped(operation)
    )


def _rows(operation: Any, variable: Any) -> Float32Array:
    """Return a weight as `[N, K]`, a row per output channel; what shares a scale lies together."""
    values = np.asarray(variable.val, np.float32)
    if _is_by_column(operation):
        values = np.swapaxes(values, 0, 1)
    return np.ascontiguousarray(values.reshape(len(values), -1))


def _from_rows(rows: Float32Array, operation: Any, variable: Any) -> np.ndarray[Any, Any]:
    shape = list(variable.shape)
    if _is_by_column(operation):
        shape[0], shape[1] = shape[1], shape[0]
        return np.ascontiguousarray(np.swapaxes(rows.reshape(shape), 0, 1)).astype(variable.val.dtype)
    return rows.reshape(shape).astype(variable.val.dtype)


def _replace(variable: Any, values: np.ndarray[Any, Any]) -> None:
    """Let a constant of `values` stand for `variable`, under its name."""
    operation = variable.op
    block = operation.enclosing_block
    with block:
        constant = Builder.const(val=values, before_op=operation, name=variable.name)
    block.replace_uses_of_var_after_op(
        anchor_op=operation, old_var=variable, new_var=constant, no_check_var_types=True
    )
    block.remove_ops([operation])

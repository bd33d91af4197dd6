"""Dynamic int8: weights int8 per channel, activations quantised to uint8 at run time; no calibration.

Each MatMul or Gemm with a constant weight becomes DynamicQuantizeLinear → MatMulInteger → Cast → Mul, the
pattern that onnxruntime fuses into its `DynamicQuantizeMatMul` (or, where several products share one
quantised activation, `MatMulIntegerToFloat`). Embedding tables are int8 with a scale per row. Convolutions are
stored as int8 and computed in float, because onnxruntime's integer convolution is slower (see `stored`).
Only standard operators of opset 11 are written.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.quantize.integers.encodings import PLAIN, ChannelWeight, Encodings
from exporter.quantize.integers.outcome import Outcome
from exporter.quantize.integers.rewrite import (
    Matrix,
    Rewrite,
    finish_product,
    is_matrix_product,
    is_transposed,
    left_operand,
    obstacle,
    weight_of,
)
from exporter.quantize.integers.stored import store_convolutions
from exporter.quantize.integers.tables import choose_tables, look_up_rows, store_rows, tie_tables, tied_heads
from exporter.quantize.integers.weights import quantize_per_channel

STORED_ONLY = "stored as int8, computed in float: onnxruntime's integer convolution is slower"

DEEPEST_SUM = (2**31 - 1) // (255 * 127)


def quantize_dynamic(model: ir.Model, encodings: Encodings = PLAIN) -> Outcome:
    """Return a copy of `model` with int8 weights and activations quantised at run time.

    Raises `GateError` for weights that are not finite.
    """
    quantized = model.clone()
    tie_tables(quantized)
    return _Dynamic(Rewrite(quantized, encodings.keep), encodings.channels).run()


def _overflow(node: ir.Node) -> str:
    """Return a reason if sums of uint8 · int8 products over the node's depth may not fit int32."""
    depth = weight_of(node).rows().shape[1]
    return f"sums of {depth} products may overflow int32" if depth > DEEPEST_SUM else ""


class _Dynamic:
    """What is shared between operators: quantised activations and stored weights."""

    def __init__(self, rewrite: Rewrite, channels: Mapping[str, ChannelWeight]) -> None:
        self.rewrite = rewrite
        self.channels = channels
        self.activations: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self.weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}

    def run(self) -> Outcome:
        rewrite = self.rewrite
        products = [node for node in rewrite.graph if is_matrix_product(node)]
        reasons = {node: obstacle(rewrite, node) or _overflow(node) for node in products}
        chosen = [node for node in products if not reasons[node]]
        self._write_tables(chosen)
        for node in products:
            if reasons[node]:
                rewrite.leave(node, reasons[node])
            else:
                self._write_product(node)
        for node, reason in store_convolutions(rewrite, Encodings(channels=self.channels)).items():
            rewrite.leave(node, reason or STORED_ONLY)
        return rewrite.outcome()

    def _write_tables(self, chosen: list[ir.Node]) -> None:
        for table, lookups in choose_tables(self.rewrite, served=chosen).items():
            stored = store_rows(self.rewrite, table)
            heads = tied_heads(table, chosen)
            if heads:
                first = next(node for node in self.rewrite.graph if node in heads)
                self._share_with_heads(table, stored.integers, stored.scales, first)
            for node in lookups:
                look_up_rows(self.rewrite, node, stored)

    def _share_with_heads(self, table: ir.Value, rows: ir.Value, scales: ir.Value, before: ir.Node) -> None:
        """Give the heads that multiply by `table` its rows as columns and its row scales as a vector."""
        name = table.name or ""
        (columns,) = self.rewrite.insert(before, "Transpose", [rows], f"{name}/columns", perm=[1, 0])
        flat = self.rewrite.constant(f"{name}/flat", np.asarray([-1], np.int64))
        (vector,) = self.rewrite.insert(before, "Reshape", [scales, flat], f"{name}/column_scale")
        self.weights[table, True] = (columns, vector)

    def _write_product(self, node: ir.Node) -> None:
        rewrite, name = self.rewrite, node.name or ""
        data, zero_point, data_scale = self._activation(node)
        weight, weight_scale = self._weight(node)
        (sums,) = rewrite.insert(node, "MatMulInteger", [data, weight, zero_point], f"{name}/int32")
        (steps,) = rewrite.insert(node, "Cast", [sums], f"{name}/cast", to=int(ir.DataType.FLOAT))
        (scale,) = rewrite.insert(node, "Mul", [data_scale, weight_scale], f"{name}/scale")
        (product,) = rewrite.insert(node, "Mul", [steps, scale], f"{name}/dequantized")
        finish_product(rewrite, node, product)

    def _activation(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the node's activation as uint8, its zero point and its scale; made once per activation."""
        source = node.inputs[0]
        if source is None or is_transposed(node) or source not in self.activations:
            source = left_operand(self.rewrite, node)
            self.activations[source] = self.rewrite.insert(
                node, "DynamicQuantizeLinear", [source], f"{source.name}/uint8", outputs=3
            )
        data, scale, zero_point = self.activations[source]
        return data, zero_point, scale

    def _weight(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        """Return the node's weight as int8 `[K, N]` and its scales `[N]`; stored once per constant."""
        matrix = weight_of(node)
        key = (matrix.source, matrix.by_output)
        if key not in self.weights:
            name = matrix.source.name or ""
            integers, scales = self._integers(matrix)
            self.weights[key] = (
                self.rewrite.constant(f"{name}/int8", integers.T),
                self.rewrite.constant(f"{name}/scale", scales),
            )
        return self.weights[key]

    def _integers(self, matrix: Matrix) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return the rows of `matrix` as int8 `[N, K]` with a scale each, as settled or by their largest weight."""
        chosen = self.channels.get(matrix.source.name or "")
        if chosen is not None and chosen.axis == (0 if matrix.by_output else 1):
            return chosen.integers if matrix.by_output else chosen.integers.T, chosen.scales
        return quantize_per_channel(matrix.rows(), axis=0)

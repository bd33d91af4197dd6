"""Static int8: QuantizeLinear/DequantizeLinear pairs where `regions` decided, weights stored per channel.

The result is what onnxruntime calls QDQ form: float operators between DequantizeLinear and QuantizeLinear,
which it fuses into int8 kernels when it loads the file. Weights are int8, symmetric, per output channel;
biases int32 at scale(activation) · scale(weight); activations int8 (or uint8), per tensor, affine.
Method: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"; operator semantics: ONNX QuantizeLinear / DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.errors import CalibrationError
from exporter.model.graph import constant_of, is_constant
from exporter.quantize.integers.encodings import ChannelWeight, Encodings
from exporter.quantize.integers.grid import Grid, grid_of
from exporter.quantize.integers.outcome import Outcome
from exporter.quantize.integers.rewrite import Rewrite, constant_matrix, output_channel_axis
from exporter.quantize.integers.tables import choose_tables, look_up_rows, store_rows, tie_tables, tied_heads
from exporter.quantize.integers.weights import (
    quantize_bias,
    quantize_per_channel,
    round_per_channel,
    scales_for_bias,
)
from exporter.quantize.regions import Regions, decide_regions


def quantize_static(model: ir.Model, encodings: Encodings, *, unsigned: bool) -> Outcome:
    """Return `model` in QDQ form, with a range in `encodings` for every activation that is put on a grid.

    Raises `CalibrationError` naming an activation that calibration never saw.
    """
    regions = decide_regions(model, encodings.keep)
    quantized = model.clone()
    tie_tables(quantized)
    grids = _grids(regions, encodings.ranges, unsigned=unsigned)
    writer = _Writer(Rewrite(quantized, encodings.keep), regions, grids, encodings.channels)
    tables = writer.write()
    return Outcome(quantized, regions.quantized | tables.quantized, {**tables.reasons, **regions.reasons})


def _grids(regions: Regions, ranges: Mapping[str, tuple[float, float]], *, unsigned: bool) -> dict[str, Grid]:
    grids: dict[str, Grid] = {}
    for name in regions.grids:
        owner = name
        while owner in regions.same_grid:
            owner = regions.same_grid[owner]
        if owner not in ranges:
            raise CalibrationError(
                f"calibration has no range for activation {owner}", fix="calibrate this model again"
            )
        grids[name] = grid_of(*ranges[owner], unsigned=unsigned)
    return grids


class _Writer:
    """Edits one graph in place: activations first, then tables, then the constants of every int8 operator."""

    def __init__(
        self,
        rewrite: Rewrite,
        regions: Regions,
        grids: Mapping[str, Grid],
        channels: Mapping[str, ChannelWeight],
    ) -> None:
        self.rewrite = rewrite
        self.channels = channels
        self.graph = rewrite.graph
        self.regions = regions
        self.grids = grids
        self.small: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.weights: dict[tuple[ir.Value, int], tuple[ir.Value, NDArray[Any]]] = {}

    def write(self) -> Outcome:
        """Quantise, and return what became of the embedding tables."""
        nodes = [node for node in self.graph if node.name in self.regions.quantized]
        nodes = [node for node in nodes if node.op_type in {"Conv", "Gemm", "MatMul"}]
        values = {v.name: v for v in [*self.graph.inputs, *(o for n in self.graph for o in n.outputs)]}
        for name, grid in self.grids.items():
            self._put_on_grid(values[name], grid)
        self._share_tables([node for node in nodes if node.op_type != "Conv"])
        for node in nodes:
            weight = node.inputs[1]
            if weight is not None and is_constant(weight):
                self._quantize_constants(node, weight)
        return self.rewrite.outcome()

    # -- activations --

    def _put_on_grid(self, value: ir.Value, grid: Grid) -> None:
        """Insert a pair behind `value`; integer readers read it, float readers too if the producer is int8."""
        scale = self._small(np.asarray(grid.scale, np.float32), "scale")
        zero_point = self._small(np.asarray(grid.zero_point, grid.dtype), "zero_point")
        quantize = _node("QuantizeLinear", [value, scale, zero_point], f"{value.name}/q")
        dequantize = _node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], f"{value.name}/dq")
        restored = dequantize.outputs[0]
        restored.shape, restored.type = value.shape, value.type
        producer = value.producer()
        produced_as_int8 = producer is not None and producer.name in self.regions.quantized
        for node, index in list(value.uses()):
            if node is not quantize and (produced_as_int8 or node.name in self.regions.quantized):
                node.replace_input_with(index, restored)
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        if value.is_graph_output() and produced_as_int8:
            _swap_output(self.graph, value, restored)

    # -- embedding tables --

    def _share_tables(self, products: Sequence[ir.Node]) -> None:
        """Store tables as int8 rows, once also where a quantised head multiplies by the table transposed."""
        readers = [node for node in products if constant_matrix(node) is not None]
        for table, lookups in choose_tables(self.rewrite, served=readers).items():
            stored = store_rows(self.rewrite, table)
            heads = tied_heads(table, readers)
            if heads:
                self._feed_heads(table, stored.integers, stored.scales, heads)
            for node in lookups:
                look_up_rows(self.rewrite, node, stored)

    def _feed_heads(
        self, table: ir.Value, rows: ir.Value, scales: ir.Value, heads: Sequence[ir.Node]
    ) -> None:
        first = next(node for node in self.graph if node in heads)
        name = table.name or ""
        flat = self.rewrite.constant(f"{name}/flat", np.asarray([-1], np.int64))
        (vector,) = self.rewrite.insert(first, "Reshape", [scales, flat], f"{name}/row_scale")
        (columns,) = self.rewrite.insert(first, "Transpose", [rows], f"{name}/columns", perm=[1, 0])
        count = 0 if rows.shape is None else int(rows.shape[0])  # type: ignore[arg-type]
        zero_point = self._small(np.zeros(count, np.int8), "zero_point")
        for head in heads:
            axis = output_channel_axis(head)
            source = rows if axis == 0 else columns
            (weight,) = self.rewrite.insert(
                head, "DequantizeLinear", [source, vector, zero_point], f"{name}/dq", axis=axis
            )
            head.replace_input_with(1, weight)

    # -- constants --

    def _quantize_constants(self, node: ir.Node, weight: ir.Value) -> None:
        axis = output_channel_axis(node)
        array, bias = constant_of(weight), _bias_of(node)
        if array is None:
            return
        needed: NDArray[np.float32] | np.float32 = np.float32(0.0)
        if bias is not None:
            channels = array.shape[axis]
            bias = np.broadcast_to(bias.reshape(-1), (channels,))
            needed = scales_for_bias(bias, self._input_scale(node))
        restored, scales = self._dequantized_weight(weight, array, axis, needed)
        node.replace_input_with(1, restored)
        if bias is not None:
            self._quantize_bias(node, bias, scales * np.float32(self._input_scale(node)))

    def _dequantized_weight(
        self, weight: ir.Value, array: NDArray[Any], axis: int, needed: NDArray[Any] | np.float32
    ) -> tuple[ir.Value, NDArray[Any]]:
        """Return `weight` as DequantizeLinear of int8 with its scales; stored once for all its readers.

        `needed` are the smallest scales that keep the bias within int32: a nearly dead channel with a real
        bias gets coarser weights and an exact bias.
        """
        key = (weight, axis)
        chosen = self.channels.get(weight.name or "")
        if chosen is not None and chosen.axis == axis:
            integers, scales = chosen.integers, chosen.scales
        else:
            integers, scales = quantize_per_channel(array, axis)
        coarser = bool(np.any(needed > scales))
        if key in self.weights and not coarser:
            return self.weights[key]
        if coarser:
            scales = np.maximum(scales, needed)
            integers = round_per_channel(array, scales, axis)
        stored = self.rewrite.constant(f"{weight.name}/int8", integers)
        # onnxruntime's fusions want the zero point spelled out; equal ones are stored once.
        inputs = [
            stored,
            self._small(scales, "scale"),
            self._small(np.zeros(len(scales), np.int8), "zero_point"),
        ]
        self.weights[key] = self._dequantize(inputs, axis), scales
        return self.weights[key]

    def _quantize_bias(self, node: ir.Node, bias: NDArray[Any], scales: NDArray[Any]) -> None:
        integers = quantize_bias(bias, scales)
        given = node.inputs[2]
        name = f"{given.name}/int32" if given is not None else f"{node.name}/bias"
        stored = self.rewrite.constant(name, integers)
        node.replace_input_with(2, self._dequantize([stored, self._small(scales, "scale")], 0))

    def _input_scale(self, node: ir.Node) -> float:
        dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
        scale = constant_of(dequantize.inputs[1]) if dequantize is not None else None
        if scale is None:
            raise CalibrationError(
                f"{node.name} has an input without a grid", fix="report this model as a bug"
            )
        return float(scale)

    # -- building blocks --

    def _dequantize(self, inputs: Sequence[ir.Value], axis: int) -> ir.Value:
        node = _node("DequantizeLinear", inputs, f"{inputs[0].name}/dq", axis=axis)
        self.graph.insert_before(self.graph[0], node)
        return node.outputs[0]

    def _small(self, array: NDArray[Any], name: str) -> ir.Value:
        """Return an initializer holding `array`; equal ones are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.small:
            value = self.rewrite.constant(name, array)
            if array.ndim == 0:  # the constant of a scalar must stay a scalar
                value.const_value = ir.tensor(array.copy(), name=value.name)
                value.shape = ir.Shape([])
            self.small[key] = value
        return self.small[key]


def _node(op: str, inputs: Sequence[ir.Value], output: str, **attributes: int) -> ir.Node:
    node = ir.node(op, inputs, attributes=attributes or None)
    node.outputs[0].name = output
    return node


def _swap_output(graph: ir.Graph, value: ir.Value, restored: ir.Value) -> None:
    name = value.name
    value.name, restored.name = f"{name}/float", name
    graph.outputs[list(graph.outputs).index(value)] = restored


def _bias_of(node: ir.Node) -> NDArray[Any] | None:
    if node.op_type == "MatMul" or len(node.inputs) < 3:
        return None
    return constant_of(node.inputs[2])

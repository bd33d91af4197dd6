"""Static int8: QuantizeLinear/DequantizeLinear pairs where `regions` decided, weights stored per channel.

The result is what onnxruntime calls QDQ form: float operators between DequantizeLinear and QuantizeLinear,
which it fuses into int8 kernels when it loads the file. Weights are int8, symmetric, per output channel;
biases int32 at scale(activation) · scale(weight); activations int8 (or uint8), per tensor, affine.
Method: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"; operator semantics: ONNX QuantizeLinear / DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from exporter.errors import CalibrationError
from exporter.graph import constant_of, is_constant
from exporter.stages.quantize.grid import Grid, grid_of
from exporter.stages.quantize.outcome import Outcome
from exporter.stages.quantize.regions import Regions, decide_regions
from exporter.stages.quantize.tables import quantize_tables
from exporter.stages.quantize.weights import quantize_per_channel

LARGEST_BIAS = 2.0**30
"""Largest |bias| in units of its scale: half of int32, leaving room for the accumulated products."""


def quantize_static(
    model: ir.Model, ranges: Mapping[str, tuple[float, float]], *, unsigned: bool, keep: Sequence[str] = ()
) -> Outcome:
    """Return `model` in QDQ form. `ranges` maps activation names to (low, high) in real units.

    Raises `CalibrationError` naming an activation that calibration never saw.
    """
    regions = decide_regions(model, keep)
    quantized = model.clone()
    writer = _Writer(quantized, regions, _grids(regions, ranges, unsigned=unsigned))
    writer.write()
    tables = quantize_tables(quantized, keep)
    reasons = {**regions.reasons, **tables.reasons}
    return Outcome(quantized, regions.quantized | tables.quantized, reasons)


def _grids(regions: Regions, ranges: Mapping[str, tuple[float, float]], *, unsigned: bool) -> dict[str, Grid]:
    grids: dict[str, Grid] = {}
    for name in regions.grids:
        owner = name
        while owner in regions.same_grid:
            owner = regions.same_grid[owner]
        if owner not in ranges:
            raise CalibrationError(f"calibration has no range for activation {owner}", fix="calibrate this model again")
        grids[name] = grid_of(*ranges[owner], unsigned=unsigned)
    return grids


class _Writer:
    """Edits one graph in place: activations first, then the constants of every quantised operator."""

    def __init__(self, model: ir.Model, regions: Regions, grids: Mapping[str, Grid]) -> None:
        self.graph = model.graph
        self.regions = regions
        self.grids = grids
        self.constants: dict[bytes, ir.Value] = {}
        self.dequantized: dict[tuple[str, int], ir.Value] = {}

    def write(self) -> None:
        nodes = [node for node in self.graph if node.name in self.regions.quantized]
        values = {value.name: value for value in [*self.graph.inputs, *(o for n in self.graph for o in n.outputs)]}
        for name, grid in self.grids.items():
            self._put_on_grid(values[name], grid)
        for node in nodes:
            if node.op_type in {"Conv", "Gemm", "MatMul"}:
                self._quantize_constants(node)

    # -- activations --

    def _put_on_grid(self, value: ir.Value, grid: Grid) -> None:
        """Insert a pair behind `value`; integer readers read it, float readers too if the producer is int8."""
        scale = self._constant(np.asarray(grid.scale, np.float32), "scale")
        zero_point = self._constant(np.asarray(grid.zero_point, grid.dtype), "zero_point")
        quantize = self._node("QuantizeLinear", [value, scale, zero_point], f"{value.name}/q")
        dequantize = self._node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], f"{value.name}/dq")
        restored = dequantize.outputs[0]
        restored.shape, restored.dtype = value.shape, value.dtype
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
            self._swap_output(value, restored)

    def _swap_output(self, value: ir.Value, restored: ir.Value) -> None:
        name = value.name
        value.name, restored.name = f"{name}/float", name
        outputs = self.graph.outputs
        outputs[list(outputs).index(value)] = restored

    # -- constants --

    def _quantize_constants(self, node: ir.Node) -> None:
        weight = node.inputs[1]
        if weight is None or not is_constant(weight):
            return
        axis = _output_channel_axis(node)
        array = constant_of(weight)
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if array is None:
            return
        integers, scales = quantize_per_channel(array, axis)
        if bias is not None and node.op_type in {"Conv", "Gemm"}:
            input_scale = self._input_scale(node)
            needed = np.abs(np.broadcast_to(bias, scales.shape)) / (input_scale * LARGEST_BIAS)
            if np.any(needed > scales):  # a nearly dead channel with a real bias: coarser weights, exact bias
                scales = np.maximum(scales, needed.astype(np.float32))
                integers = _round_to(array, scales, axis)
            self._quantize_bias(node, np.broadcast_to(bias, scales.shape), scales * np.float32(input_scale))
        stored = self._constant(integers, f"{weight.name}_int8", key=f"{id(weight.const_value)}:{axis}")
        node.replace_input_with(1, self._dequantize(stored, scales, axis, shared=True))

    def _input_scale(self, node: ir.Node) -> float:
        dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
        scale = constant_of(dequantize.inputs[1]) if dequantize is not None else None
        if scale is None:
            raise CalibrationError(f"{node.name} has an input without a grid", fix="report this model as a bug")
        return float(scale)

    def _quantize_bias(self, node: ir.Node, bias: np.ndarray, scales: np.ndarray) -> None:
        integers = np.rint(bias.astype(np.float64) / scales.astype(np.float64)).astype(np.int32)
        name = f"{node.inputs[2].name}_int32" if node.inputs[2] is not None else f"{node.name}/bias_int32"
        stored = self._constant(integers, name)
        node.replace_input_with(2, self._dequantize(stored, scales, 0, shared=False))

    def _dequantize(self, stored: ir.Value, scales: np.ndarray, axis: int, *, shared: bool) -> ir.Value:
        key = (stored.name or "", axis)
        if shared and key in self.dequantized:
            return self.dequantized[key]
        inputs: list[ir.Value] = [stored, self._constant(scales.astype(np.float32), "scale")]
        if stored.dtype == ir.DataType.INT8:
            # onnxruntime's fusions want the zero point spelled out; equal ones are stored once.
            inputs.append(self._constant(np.zeros(scales.shape, np.int8), "zero_point"))
        node = self._node("DequantizeLinear", inputs, f"{stored.name}/dq", axis=axis)
        self.graph.insert_before(self.graph[0], node)
        self.dequantized[key] = node.outputs[0]
        return node.outputs[0]

    # -- building blocks --

    def _node(self, op: str, inputs: Sequence[ir.Value], output: str, **attributes: int) -> ir.Node:
        node = ir.node(op, inputs, attributes=attributes or None)
        node.outputs[0].name = output
        return node

    def _constant(self, array: np.ndarray, stem: str, key: str = "") -> ir.Value:
        """Return an initializer holding `array`; equal small ones are stored once."""
        digest = f"{key}|{array.dtype}|{array.shape}|".encode() + (array.tobytes() if array.size <= 65536 or key == "" else b"")
        known = self.constants.get(digest)
        if known is not None:
            return known
        name, number = stem, 1
        while name in self.graph.initializers:
            name, number = f"{stem}_{number}", number + 1
        value = ir.val(name, const_value=ir.tensor(array.copy(order="C"), name=name))
        self.graph.register_initializer(value)
        self.constants[digest] = value
        return value


def _output_channel_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1


def _round_to(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scales.reshape(shape)), -127, 127).astype(np.int8)

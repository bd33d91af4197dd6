"""The float graph with rounding put where the exporter's quantiser will put integers.

Which values and weights become integers is decided by the same functions as in the quantiser
(`decide_regions`, `exporter.quantize.integers`); here a node that rounds is inserted where the quantiser would insert a
pair of QuantizeLinear and DequantizeLinear or replace a constant. The exporter's side is
`exporter.quantize.static` and `.weight_only`: what changes there changes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from exporter.compress.qat.rounding import (
    ActivationGrid,
    BlockActivations,
    BlockRows,
    ChannelRows,
    ChannelWeight,
    Reader,
)
from exporter.errors import CalibrationError
from exporter.model.graph import is_constant
from exporter.quantize.integers.grid import grid_of
from exporter.quantize.integers.rewrite import (
    CONVOLUTIONS,
    Matrix,
    Rewrite,
    constant_matrix,
    is_matrix_product,
    is_transposed,
    obstacle,
    output_channel_axis,
)
from exporter.quantize.integers.stored import channel_axis, storing_obstacle
from exporter.quantize.integers.tables import choose_tables, tie_tables, tied_heads
from exporter.quantize.integers.weights import kernel_block
from exporter.quantize.regions import Regions
from exporter.schemes import Method, Scheme
from exporter.torch_graph.graph import MODULE_DOMAIN, TorchGraph


@dataclass(frozen=True, slots=True)
class Imitation:
    """A graph that computes as the exported integer file will.

    `grids` are the activations' grids by the name of the value that owns each; `rounded_weights` the names of
    the constants that are stored as integers, biases left out.
    """

    graph: TorchGraph
    grids: Mapping[str, ActivationGrid]
    rounded_weights: tuple[str, ...]


def imitate_static(
    model: ir.Model,
    regions: Regions,
    ranges: Mapping[str, tuple[float, float]],
    *,
    unsigned: bool,
    keep: Sequence[str],
    learned: bool,
) -> Imitation:
    """Return `model` with activations of `regions` on grids over `ranges` and weights in int8 per channel.

    The scales of the grids are parameters if `learned`. Raises `CalibrationError` for a value without range.
    """
    builder = _Builder(model, keep)
    owners = {name: owner_of(name, regions) for name in regions.grids}
    grids: dict[str, ActivationGrid] = {}
    for name in dict.fromkeys(owners.values()):
        if name not in ranges:
            raise CalibrationError(f"calibration has no range for activation {name}", fix="calibrate again")
        grids[name] = ActivationGrid(grid_of(*ranges[name], unsigned=unsigned), learned=learned)
    products = [
        node
        for node in builder.graph
        if node.name in regions.quantized and node.op_type in {"Conv", "Gemm", "MatMul"}
    ]
    inputs = {node: _name(node.inputs[0]) for node in products}
    for name in regions.grids:
        builder.put_on_grid(name, grids[owners[name]], regions)
    builder.round_tables([node for node in products if node.op_type != "Conv"], lambda: ChannelRows(axis=0))
    readers: dict[tuple[ir.Value, int], list[ir.Node]] = {}
    for node in products:
        weight = node.inputs[1]
        if weight is not None and is_constant(weight):
            readers.setdefault((weight, output_channel_axis(node)), []).append(node)
    for (weight, axis), nodes in readers.items():
        builder.round_shared_weight(weight, axis, nodes, [grids[owners[inputs[node]]] for node in nodes])
    return builder.imitation(grids)


def imitate_weight_only(model: ir.Model, scheme: Scheme, keep: Sequence[str]) -> Imitation:
    """Return `model` with weights as a weight-only `scheme` stores them, and activations as its kernel reads them."""

    def rounding() -> nn.Module:
        if scheme.block_size is None:
            return ChannelRows(axis=0)
        return BlockRows(scheme.block_size, scheme.weight_bits)

    def block_of(depth: int) -> int:
        return kernel_block(depth, scheme.block_size or 256)

    builder = _Builder(model, keep)
    products = [node for node in builder.graph if is_matrix_product(node)]
    chosen = {node: constant_matrix(node) for node in products if not obstacle(builder.rewrite, node)}
    heads = builder.round_tables(list(chosen), rounding)
    for node, matrix in chosen.items():
        if matrix is not None and node not in heads:
            builder.round_matrix(node, matrix, rounding)
    for node, matrix in chosen.items():
        if matrix is not None:
            builder.round_activation(node, block_of(matrix.rows().shape[1]))
    builder.round_convolutions()
    return builder.imitation({})


def knows(scheme: Scheme) -> bool:
    """Whether training can imitate `scheme`."""
    return scheme.method in {Method.STATIC, Method.WEIGHT_ONLY}


def owner_of(name: str, regions: Regions) -> str:
    """Return the value whose grid `name` is on."""
    while name in regions.same_grid:
        name = regions.same_grid[name]
    return name


def _name(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


class _Builder:
    """Inserts rounding nodes into a copy of one graph."""

    def __init__(self, model: ir.Model, keep: Sequence[str]) -> None:
        self.model = model.clone()
        tie_tables(self.model)
        self.rewrite = Rewrite(self.model, tuple(keep))
        self.graph = self.model.graph
        self.parts: dict[str, nn.Module] = {}
        self.rows: dict[Matrix, ir.Value] = {}
        self.activations: dict[tuple[ir.Value, int], ir.Value] = {}
        self.weights: dict[str, None] = {}
        self.values = {v.name: v for v in [*self.graph.inputs, *(o for n in self.graph for o in n.outputs)]}

    def put_on_grid(self, name: str, grid: ActivationGrid, regions: Regions) -> None:
        """Round a value for integer readers, and for all readers if an integer operator wrote it."""
        value = self.values[name]
        producer = value.producer()
        produced_as_int8 = producer is not None and producer.name in regions.quantized
        (restored,) = self._insert([value], grid, name)
        for reader, index in list(value.uses()):
            if reader is restored.producer():
                continue
            if produced_as_int8 or reader.name in regions.quantized:
                reader.replace_input_with(index, restored)
        if value.is_graph_output() and produced_as_int8:
            self.graph.outputs[list(self.graph.outputs).index(value)] = restored

    def round_tables(self, products: Sequence[ir.Node], rounding: Callable[[], nn.Module]) -> set[ir.Node]:
        """Round embedding tables, row by row, for lookups and for the heads that multiply by them.

        `products` are the operators that will read integers; returns those of them that are such heads.
        """
        served = [node for node in products if constant_matrix(node) is not None]
        fed: set[ir.Node] = set()
        for table, lookups in choose_tables(self.rewrite, served=served).items():
            matrix = Matrix(table, by_output=True)
            for node in lookups:
                node.replace_input_with(0, self._rounded(matrix, rounding))
            for head in tied_heads(table, served):
                self.round_matrix(head, matrix, rounding)
                fed.add(head)
        return fed

    def round_matrix(self, node: ir.Node, matrix: Matrix, rounding: Callable[[], nn.Module]) -> None:
        """Let a MatMul or Gemm multiply by `matrix` rounded row by row, a row per output channel."""
        rows = self._rounded(matrix, rounding)
        reads_rows = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        node.replace_input_with(1, rows if reads_rows else self._turned(rows))

    def round_activation(self, node: ir.Node, block_size: int) -> None:
        """Round what a block kernel multiplies by its integers."""
        data = node.inputs[0]
        if data is None or is_transposed(node):
            return
        if (data, block_size) not in self.activations:
            part = BlockActivations(block_size)
            (self.activations[data, block_size],) = self._insert([data], part, _name(data))
        node.replace_input_with(0, self.activations[data, block_size])

    def round_convolutions(self) -> None:
        """Round the weights of convolutions in int8 per output channel."""
        for node in [node for node in self.graph if node.op_type in CONVOLUTIONS]:
            weight = node.inputs[1]
            if (
                node.domain in {"", "ai.onnx"}
                and weight is not None
                and not storing_obstacle(self.rewrite, node)
            ):
                (restored,) = self._insert([weight], ChannelRows(channel_axis(node, weight)), _name(weight))
                self.weights[_name(weight)] = None
                node.replace_input_with(1, restored)

    def round_shared_weight(
        self, weight: ir.Value, axis: int, nodes: Sequence[ir.Node], grids: Sequence[ActivationGrid]
    ) -> None:
        """Round one weight for all `nodes` that multiply by it (their inputs on `grids`), and their biases."""
        biases = [_constant_bias(node) for node in nodes]
        readers = [Reader(grid, bias is not None) for grid, bias in zip(grids, biases, strict=True)]
        given = [weight, *(bias for bias in biases if bias is not None)]
        part = ChannelWeight(axis, readers)
        restored = iter(self._insert(given, part, _name(weight), outputs=len(nodes) + len(given) - 1))
        self.weights[_name(weight)] = None
        for node, bias in zip(nodes, biases, strict=True):
            node.replace_input_with(1, next(restored))
            if bias is not None:
                node.replace_input_with(2, next(restored))

    def imitation(self, grids: Mapping[str, ActivationGrid]) -> Imitation:
        """Return what was built, its nodes in an order that can be run."""
        self.graph.sort()
        return Imitation(TorchGraph(self.model, self.parts), grids, tuple(self.weights))

    def _rounded(self, matrix: Matrix, rounding: Callable[[], nn.Module]) -> ir.Value:
        if matrix not in self.rows:
            rows = matrix.source if matrix.by_output else self._turned(matrix.source)
            (self.rows[matrix],) = self._insert([rows], rounding(), _name(matrix.source))
            self.weights[_name(matrix.source)] = None
        return self.rows[matrix]

    def _turned(self, matrix: ir.Value) -> ir.Value:
        name = f"{matrix.name}/turned"
        return self.rewrite.insert(self.graph[0], "Transpose", [matrix], name, perm=[1, 0])[0]

    def _insert(
        self, inputs: Sequence[ir.Value], part: nn.Module, name: str, outputs: int = 1
    ) -> tuple[ir.Value, ...]:
        """Insert a node that `part` computes; one part may compute several nodes."""
        key = next((key for key, known in self.parts.items() if known is part), f"part{len(self.parts)}")
        self.parts[key] = part
        return self.rewrite.insert(
            self.graph[0],
            "Round",
            inputs,
            f"{name}/rounded",
            domain=MODULE_DOMAIN,
            outputs=outputs,
            module=key,
        )


def _constant_bias(node: ir.Node) -> ir.Value | None:
    if node.op_type == "MatMul" or len(node.inputs) < 3:
        return None
    return node.inputs[2] if is_constant(node.inputs[2]) else None

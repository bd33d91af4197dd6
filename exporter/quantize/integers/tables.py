"""Embedding tables: found, stored as integers, and stored once where the output head reads the same table.

A table is a constant matrix whose rows a Gather looks up. A row per token is also a row per output channel of
the head, so one integer copy with one scale per row (or per block of a row) serves both: the head reads it
through a Transpose or Reshape that onnxruntime folds when it loads the file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporter.model.graph import consumers, is_constant, is_float
from exporter.quantize.integers.encodings import ChannelWeight
from exporter.quantize.integers.outcome import Outcome
from exporter.quantize.integers.rewrite import (
    KEPT,
    Matrix,
    Rewrite,
    array_of,
    constant_matrix,
    is_matrix_product,
)
from exporter.quantize.integers.weights import quantize_per_channel

SMALLEST_TABLE_ROWS = 65
"""Tables of 64 rows or fewer (token types, say) stay float: they weigh nothing."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """One table in the file: int8 `[rows, width]` with scales float32 `[rows, 1]`.

    Where `offset`, the integers are uint8 with zero point 128; where `padded`, rows are longer than `width`.
    """

    integers: ir.Value
    scales: ir.Value
    width: int
    offset: bool = False
    padded: bool = False


def quantize_tables(model: ir.Model, keep: Sequence[str]) -> Outcome:
    """Store the embedding tables of `model` as int8 rows, in place, where nothing reads them in float."""
    rewrite = Rewrite(model, keep)
    for table, lookups in choose_tables(rewrite, served=frozenset()).items():
        stored = store_rows(rewrite, table)
        for node in lookups:
            look_up_rows(rewrite, node, stored)
    return rewrite.outcome()


def choose_tables(rewrite: Rewrite, served: Collection[ir.Node]) -> dict[ir.Value, list[ir.Node]]:
    """Return the tables to quantise with the lookups that read each; notes why the other lookups stay float.

    `served` are operators that will read integers. A table that some other operator reads stays float: an
    integer copy beside it would make the file larger.
    """
    lookups: dict[ir.Value, list[ir.Node]] = {}
    for node in rewrite.graph:
        if node.op_type != "Gather" or node.domain not in {"", "ai.onnx"} or not is_float(node.inputs[0]):
            continue
        reason = KEPT if rewrite.is_kept(node) else _lookup_obstacle(node)
        if reason:
            rewrite.leave(node, reason)
        elif node.inputs[0] is not None:
            lookups.setdefault(node.inputs[0], []).append(node)
    chosen = {}
    for table, nodes in lookups.items():
        reader = _float_reader(table, {*served, *nodes})
        if reader is None:
            chosen[table] = nodes
            continue
        for node in nodes:
            rewrite.leave(node, f"its table is read in float by {reader.name}")
    return chosen


def _lookup_obstacle(node: ir.Node) -> str:
    table = node.inputs[0]
    if table is None or not is_constant(table) or table.is_graph_input():
        return "selects from an activation: nothing to quantise"
    if table.shape is None or len(table.shape) != 2 or node.attributes.get_int("axis", 0) not in {0, -2}:
        return "does not look up rows of a matrix"
    if table.dtype != ir.DataType.FLOAT:
        return f"its table is {str(table.dtype).lower()}, not float32"
    rows = table.shape[0]
    if not isinstance(rows, int) or rows < SMALLEST_TABLE_ROWS:
        return f"its table has only {rows} rows"
    return ""


def _float_reader(value: ir.Value, served: Collection[ir.Node]) -> ir.Node | None:
    """Return a node outside `served` that reads `value`, itself or transposed; `None` if there is none."""
    for node in consumers(value):
        if node.op_type in {"Transpose", "Identity"}:
            reader = _float_reader(node.outputs[0], served)
            if reader is not None:
                return reader
            if node.outputs[0].is_graph_output():
                return node
        elif node not in served:
            return node
    return None


def tied_heads(table: ir.Value, products: Collection[ir.Node]) -> list[ir.Node]:
    """Return those of `products` that multiply by `table` transposed: a row of it per output channel."""
    return [node for node in products if constant_matrix(node) == Matrix(table, by_output=True)]


def tie_tables(model: ir.Model) -> None:
    """Let MatMul and Gemm whose weight equals an embedding table read the table itself, in place.

    Exporters fold the transposed table of a tied head into a second copy; equal bytes are what tells. Exact
    equality is required, so the model computes what it did.
    """
    tables = {
        node.inputs[0]: None
        for node in model.graph
        if node.op_type == "Gather" and node.inputs[0] is not None and not _lookup_obstacle(node)
    }
    for node in list(model.graph):
        matrix = constant_matrix(node) if is_matrix_product(node) else None
        if matrix is None or matrix.source in tables:
            continue
        rows = matrix.rows()
        for table in tables:
            if _equal(array_of(table), rows):
                _read_table(node, table)
                break


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    # a first row that differs spares the comparison of the rest
    return first.shape == second.shape and all(np.array_equal(first[p], second[p]) for p in (slice(1), ...))


def _read_table(node: ir.Node, table: ir.Value) -> None:
    """Let `node` multiply by `table` `[N, K]`, transposed."""
    if node.op_type == "Gemm":
        node.attributes["transB"] = ir.AttrInt64("transB", 1)
        node.replace_input_with(1, table)
        return
    transpose = ir.node("Transpose", [table], {"perm": [1, 0]}, name=f"{node.name}/tied_table")
    transpose.outputs[0].name = f"{node.name}/tied_table"
    if node.graph is not None:
        node.graph.insert_before(node, transpose)
    node.replace_input_with(1, transpose.outputs[0])


def store_rows(
    rewrite: Rewrite,
    table: ir.Value,
    padded_width: int | None = None,
    settled: ChannelWeight | None = None,
) -> StoredRows:
    """Store `table` as int8 with a scale per row; as uint8 padded to `padded_width` if that is given.

    `settled` are its integers where they were chosen already, otherwise rows scale by their largest weight.
    """
    array = array_of(table)
    integers, scales = (
        quantize_per_channel(array, axis=0) if settled is None else (settled.integers, settled.scales)
    )
    stored = integers if padded_width is None else to_unsigned(integers, padded_width)
    return StoredRows(
        rewrite.constant(f"{table.name}/int8", stored),
        rewrite.constant(f"{table.name}/scale", scales[:, None]),
        width=array.shape[1],
        offset=padded_width is not None,
        padded=padded_width is not None and padded_width != array.shape[1],
    )


def to_unsigned(integers: np.ndarray, padded_width: int) -> np.ndarray:
    """Return int8 `[rows, width]` as uint8 with zero point 128, rows padded with 128 to `padded_width`."""
    padded = np.full((len(integers), padded_width), 128, np.uint8)
    padded[:, : integers.shape[1]] = integers.view(np.uint8) ^ 0x80  # adding 128 flips the sign bit
    return padded


def look_up_rows(rewrite: Rewrite, node: ir.Node, stored: StoredRows) -> None:
    """Let the Gather `node` read `stored`, by standard operators that any runtime has."""
    name, indices = node.name or "", node.inputs[1]
    (row,) = rewrite.insert(node, "Gather", [stored.integers, indices], f"{name}/int8", axis=0)
    (scale,) = rewrite.insert(node, "Gather", [stored.scales, indices], f"{name}/scale", axis=0)
    (value,) = rewrite.insert(node, "Cast", [row], f"{name}/cast", to=int(ir.DataType.FLOAT))
    if stored.offset:
        middle = rewrite.constant(f"{name}/zero_point", np.asarray(128.0, np.float32))
        (value,) = rewrite.insert(node, "Sub", [value, middle], f"{name}/centred")
    if stored.padded:
        value = cut_columns(rewrite, node, value, stored.width)
    (value,) = rewrite.insert(node, "Mul", [value, scale], f"{name}/dequantized")
    rewrite.substitute(node, value)


def cut_columns(rewrite: Rewrite, node: ir.Node, value: ir.Value, width: int) -> ir.Value:
    """Return `value` cut to `width` along its last axis: what `node` reads was padded."""
    name = node.name or ""
    bounds = [
        rewrite.constant(f"{name}/{bound}", np.asarray([number], np.int64))
        for bound, number in (("start", 0), ("end", width), ("axis", -1))
    ]
    return rewrite.insert(node, "Slice", [value, *bounds], f"{name}/unpadded")[0]

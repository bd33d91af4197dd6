"""Weight-only int8 and int4: weights stored as integers, everything else float.

MatMul and Gemm become `com.microsoft.MatMulNBits` with accuracy_level 4, which multiplies the stored
integers by activations rounded to int8 block by block inside the kernel (without it the operator is slower
than float).
Two forms of storage:

* int8 per channel (no block size): one scale per output channel in the file. The kernel wants a scale per
  block; an Expand that onnxruntime folds when it loads the file repeats them, so that the kernel runs with its
  fastest block size and the file pays 4 bytes a channel.
* int8 or int4 in blocks: a scale per block, stored as bfloat16 and cast when loaded (float32 scales would
  cost half a bit more per weight at block 32); for int4 also a zero point per block.

Widths may be mixed in one graph: the kernels take 8 bits in the same blocks. Weights whose integers recovery
has chosen are written as they are; the rest get the scales of least squared error.
Embedding tables take the same storage and are shared with a tied head. Convolutions have no kernel of these
forms: they are stored as int8 per channel, or on request in int4 blocks, and computed in float (see `stored`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporter.errors import UsageError
from exporter.quantize.integers.encodings import ChannelWeight, Encodings
from exporter.quantize.integers.outcome import Outcome
from exporter.quantize.integers.rewrite import (
    Matrix,
    Rewrite,
    array_of,
    finish_product,
    is_matrix_product,
    left_operand,
    obstacle,
    weight_of,
)
from exporter.quantize.integers.stored import FOUR_BITS, chosen_blocks, chosen_channels, store_convolutions
from exporter.quantize.integers.tables import (
    StoredRows,
    choose_tables,
    cut_columns,
    look_up_rows,
    store_rows,
    tie_tables,
    tied_heads,
    to_unsigned,
)
from exporter.quantize.integers.weights import Blocks, kernel_block, quantize_blocks, quantize_per_channel

MICROSOFT = "com.microsoft"
FLOAT = int(ir.DataType.FLOAT)
INT8_CONVOLUTION = "onnxruntime has no int4 convolution; stored as int8"
_NOTHING_SETTLED = Encodings()


@dataclass(frozen=True, slots=True)
class _Packed:
    """A matrix as MatMulNBits reads it: `data` uint8 `[N, blocks, bytes]`, `scales` float32 `[N, blocks]`."""

    data: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    block_size: int
    bits: int = 8


def quantize_weight_only(
    model: ir.Model, bits: int, block_size: int | None, encodings: Encodings = _NOTHING_SETTLED
) -> Outcome:
    """Return a copy of `model` whose weights have `bits` (8 or 4) and a scale per `block_size` (`None`: per channel).

    Of `encodings`, `keep` are operators that stay float; `blocks` and `channels` are weights whose integers are
    settled, used where their width is the one wanted; `bits` says 8 of an operator in a scheme of 4 bits, or 4
    of a convolution, which has no int4 kernel and gains size only. Raises `UsageError` for a width or block that
    has no kernel, `GateError` for weights that are not finite, `InternalError` for integers of another shape.
    """
    blocks = {16, 32, 64, 128, 256} | ({None} if bits == 8 else set())
    if bits not in {4, 8} or block_size not in blocks:
        raise UsageError(
            f"no weight-only form has {bits} bits and blocks of {block_size}",
            fix="use 8 bits, or 4 bits in blocks of 32, 64 or 128",
        )
    quantized = model.clone()
    tie_tables(quantized)
    return _WeightOnly(Rewrite(quantized, encodings.keep), bits, block_size, encodings).run()


class _WeightOnly:
    """One block size for the whole graph, the width of each matrix, and the matrices stored so far."""

    def __init__(self, rewrite: Rewrite, bits: int, block_size: int | None, encodings: Encodings) -> None:
        self.rewrite = rewrite
        self.bits = bits
        self.block_size = block_size
        self.encodings = encodings
        self.packed: dict[tuple[ir.Value, bool], _Packed] = {}
        self.wider: frozenset[ir.Value] = frozenset()

    def run(self) -> Outcome:
        rewrite = self.rewrite
        products = [node for node in rewrite.graph if is_matrix_product(node)]
        reasons = {node: obstacle(rewrite, node) for node in products}
        chosen = [node for node in products if not reasons[node]]
        tables = choose_tables(rewrite, served=chosen)
        self.wider = self._wider(chosen, tables)
        for table, lookups in tables.items():
            self._write_table(table, lookups, chosen)
        for node in products:
            if reasons[node]:
                rewrite.leave(node, reasons[node])
            else:
                self._write_product(node)
        self._write_convolutions()
        return rewrite.outcome()

    def _wider(
        self, products: Iterable[ir.Node], tables: Mapping[ir.Value, Iterable[ir.Node]]
    ) -> frozenset[ir.Value]:
        """Return the matrices that some reader wants in 8 bits: what is stored once has one width."""
        readers = [(weight_of(node).source, node) for node in products]
        readers += [(table, node) for table, lookups in tables.items() for node in lookups]
        return frozenset(source for source, node in readers if self.encodings.bits.get(node.name or "") == 8)

    def _bits_of(self, source: ir.Value) -> int:
        return 8 if source in self.wider else self.bits

    def _write_convolutions(self) -> None:
        rewrite = self.rewrite
        stored = store_convolutions(rewrite, self.encodings, four=self.block_size if self.bits == 4 else None)
        for node, reason in stored.items():
            if reason == FOUR_BITS or (not reason and self.bits == 8):
                rewrite.quantized.add(node.name or "")
            else:
                rewrite.leave(node, reason or INT8_CONVOLUTION)

    # -- products --

    def _write_product(self, node: ir.Node) -> None:
        matrix = weight_of(node)
        columns, depth = matrix.rows().shape
        key = (matrix.source, matrix.by_output)
        if key not in self.packed:
            self.packed[key] = self._pack(node, matrix)
        packed = self.packed[key]
        inputs = [left_operand(self.rewrite, node), packed.data, packed.scales]
        if packed.zero_points is not None:
            inputs.append(packed.zero_points)
        (product,) = self.rewrite.insert(
            node, "MatMulNBits", inputs, f"{node.name}/product", domain=MICROSOFT,
            K=depth, N=columns, bits=packed.bits, block_size=packed.block_size, accuracy_level=4,
        )  # fmt: skip
        finish_product(self.rewrite, node, product)

    def _pack(self, before: ir.Node, matrix: Matrix) -> _Packed:
        name, rows = matrix.source.name, matrix.rows()
        if self.block_size is None:
            block = kernel_block(rows.shape[1])
            blocks = -(-rows.shape[1] // block)
            integers, scales = self._channels(matrix, rows)
            data = to_unsigned(integers, blocks * block).reshape(len(rows), blocks, block)
            scale = self.rewrite.constant(f"{name}/scale", scales[:, None])
            stored = self.rewrite.constant(f"{name}/int8", data)
            return _Packed(stored, self._expanded(before, scale, len(rows), blocks), None, block)
        return self._store(before, name or "", self._blocks(matrix.source, rows, self.block_size))

    def _channels(self, matrix: Matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return int8 rows `[N, K]` with a scale each, as settled or by their largest weight."""
        settled = chosen_channels(self.encodings, matrix.source, 0 if matrix.by_output else 1)
        if settled is None:
            return quantize_per_channel(rows, axis=0)
        return settled.integers if matrix.by_output else settled.integers.T, settled.scales

    def _expanded(self, before: ir.Node, scale: ir.Value, rows: int, blocks: int) -> ir.Value:
        """Return the row scales `[N, 1]` repeated for every block, by an operator folded when loaded."""
        if blocks == 1:
            return scale
        shape = self.rewrite.constant(f"{scale.name}/shape", np.asarray([rows, blocks], np.int64))
        return self.rewrite.insert(before, "Expand", [scale, shape], f"{scale.name}/blocks")[0]

    def _blocks(self, source: ir.Value, rows: np.ndarray, block_size: int) -> Blocks:
        """Return `rows` `[N, K]` of `source` in blocks, as settled or of least squared error."""
        bits = self._bits_of(source)
        settled = chosen_blocks(self.encodings, source, rows.shape, bits)
        fitting = kernel_block(rows.shape[1], block_size)
        return settled or quantize_blocks(rows, fitting, bits, symmetric=bits == 8)

    def _store(self, before: ir.Node, name: str, blocks: Blocks, *, flat: bool = False) -> _Packed:
        """Store `blocks`; `flat` leaves the bytes of a row in one axis."""
        halves = (blocks.scales.view(np.uint32) >> 16).astype(np.uint16)
        stored = self.rewrite.constant(f"{name}/scale", halves, ir.DataType.BFLOAT16)
        (scales,) = self.rewrite.insert(before, "Cast", [stored], f"{name}/scale_float", to=FLOAT)
        zero_points = None
        if blocks.zero_points is not None:
            zero_points = self.rewrite.constant(f"{name}/zero_point", blocks.zero_points)
        data = blocks.packed.reshape(len(blocks.packed), -1) if flat else blocks.packed
        constant = self.rewrite.constant(f"{name}/int{blocks.bits}", data)
        return _Packed(constant, scales, zero_points, blocks.block_size, blocks.bits)

    # -- tables --

    def _write_table(self, table: ir.Value, lookups: list[ir.Node], chosen: list[ir.Node]) -> None:
        heads = tied_heads(table, chosen)
        first = next(node for node in self.rewrite.graph if node in heads or node in lookups)
        if self.block_size is not None:
            self._write_block_table(table, lookups, first, self.block_size, tied=bool(heads))
            return
        settled = chosen_channels(self.encodings, table, 0)
        stored = (
            self._tied_rows(table, first, settled)
            if heads
            else store_rows(self.rewrite, table, settled=settled)
        )
        for node in lookups:
            look_up_rows(self.rewrite, node, stored)

    def _tied_rows(self, table: ir.Value, first: ir.Node, settled: ChannelWeight | None) -> StoredRows:
        """Store the table with the zero point and the padding that its heads want, and hand it to them."""
        rows, depth = array_of(table).shape
        block = kernel_block(depth)
        blocks = -(-depth // block)
        stored = store_rows(self.rewrite, table, padded_width=blocks * block, settled=settled)
        data = self._reshaped(first, stored.integers, (rows, blocks, block))
        scales = self._expanded(first, stored.scales, rows, blocks)
        self.packed[table, True] = _Packed(data, scales, None, block)
        return stored

    def _write_block_table(
        self, table: ir.Value, lookups: list[ir.Node], first: ir.Node, block_size: int, *, tied: bool
    ) -> None:
        """Store the table in blocks; GatherBlockQuantized reads flat rows, a tied head the same in blocks."""
        array = array_of(table)
        rows, width = array.shape
        packed = self._store(first, table.name or "", self._blocks(table, array, block_size), flat=not tied)
        padded_width = -(-width // packed.block_size) * packed.block_size
        flat = packed.data
        if tied:
            flat = self._reshaped(first, packed.data, (rows, padded_width * packed.bits // 8))
            self.packed[table, True] = packed
        for node in lookups:
            inputs = [flat, node.inputs[1], packed.scales]
            if packed.zero_points is not None:
                inputs.append(packed.zero_points)
            (value,) = self.rewrite.insert(
                node, "GatherBlockQuantized", inputs, f"{node.name}/dequantized", domain=MICROSOFT,
                bits=packed.bits, block_size=packed.block_size, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
            if padded_width != width:
                value = cut_columns(self.rewrite, node, value, width)
            self.rewrite.substitute(node, value)

    def _reshaped(self, before: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        target = self.rewrite.constant(f"{value.name}/shape", np.asarray(shape, np.int64))
        return self.rewrite.insert(before, "Reshape", [value, target], f"{value.name}/reshaped")[0]

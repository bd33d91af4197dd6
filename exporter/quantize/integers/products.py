"""The integer products of one quantised graph, and how large their sums can grow: exact, from the stored weights.

Reads graphs, runs nothing, judges nothing. On x86 without VNNI, onnxruntime multiplies uint8 activations by int8
weights with `vpmaddubsw`, which adds neighbouring products in int16 and saturates; every other pairing of types it
widens to 16 bits first and adds in int32 (`pmaddwd`), as ARM does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.model.graph import constant_of
from exporter.quantize.integers.rewrite import output_channel_axis

INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1
INT32_MAX = 2**31 - 1
_BLOCK_ACTIVATION = 127
"""MatMulNBits at accuracy level 4 rounds activations to ±127, block by block."""
_ELEMENTS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Product:
    """One integer product: operator `layer`, `rows` output channels, each a sum over `depth` products.

    `kernel` is `u8s8`, `s8s8`, `u8u8`, `depthwise` or `blocks`. `pair_rows` are the rows whose sum of two
    neighbouring products can leave int16, `largest_pair` the sum of largest magnitude (`None`: no pairs are formed).
    `largest_sum` bounds every partial sum of a row with its bias, in any order of adding; `None` if the depth is unknown.
    """

    layer: str
    op: str
    kernel: str
    rows: int
    depth: int | None
    pair_rows: int
    largest_pair: int | None
    largest_sum: int | None
    rows_over: int

    @property
    def headroom_bits(self) -> float | None:
        """Bits between the largest sum and the end of int32; negative if it does not fit."""
        return None if not self.largest_sum else math.log2(INT32_MAX / self.largest_sum)


def integer_products(model: ir.Model) -> Iterator[Product]:
    """Yield, in graph order, every product of integers that a QDQ, dynamic or weight-only graph asks for."""
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            yield _block_product(node)
        elif node.op_type == "MatMulInteger":
            weight = stored_integers(node.inputs[1])
            if weight is not None:
                # DynamicQuantizeLinear may put zero at either end of its 256 levels.
                yield _weighed(node, "u8s8", _rows(weight, axis=1), (-255, 255), None)
        elif node.op_type in {"Conv", "Gemm", "MatMul"}:
            product = _static_product(node)
            if product is not None:
                yield product


def _static_product(node: ir.Node) -> Product | None:
    """Return the integer product that a Conv, Gemm or MatMul between DequantizeLinears stands for, if it is one."""
    data, weight = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    if data is None or weight is None:
        return None
    low, high, is_unsigned = _grid_of(data)
    integers = stored_integers(weight.inputs[0])
    if integers is None:
        return _of_activations(node, (low, high), _grid_of(weight)[:2], is_unsigned=is_unsigned)
    kernel = _kernel(node, integers, is_unsigned=is_unsigned)
    bias = dequantized(node.inputs[2]) if len(node.inputs) > 2 else None
    stored = None if bias is None else stored_integers(bias.inputs[0])
    return _weighed(node, kernel, _rows(integers, output_channel_axis(node)), (low, high), stored)


def _kernel(node: ir.Node, integers: NDArray[Any], *, is_unsigned: bool) -> str:
    if not is_unsigned:
        return "s8s8"
    if integers.dtype == np.uint8:
        return "u8u8"
    group = node.attributes.get_int("group", 1)
    return "depthwise" if group > 1 and group == integers.shape[0] and integers.shape[1] == 1 else "u8s8"


def _weighed(
    node: ir.Node, kernel: str, rows: NDArray[Any], limits: tuple[int, int], bias: NDArray[Any] | None
) -> Product:
    """Return the product of activations within `limits` (less their zero point) and `rows` `[N, ...]` of weights."""
    flat = rows.reshape(len(rows), -1)
    sums = largest_sums(flat, limits)
    if bias is not None:
        sums = sums + np.abs(bias.reshape(-1).astype(np.int64))
    pair_rows, largest_pair = 0, None
    if kernel == "u8s8":
        risks, largest_pair = np.zeros(len(rows), bool), 0
        for order in _depth_orders(rows):
            low, high = pair_extremes(order)
            risks |= (low < INT16_MIN) | (high > INT16_MAX)
            largest_pair = max(largest_pair, int(high.max(initial=0)), int(-low.min(initial=0)))
        pair_rows = int(risks.sum())
    return Product(
        node.name or "", node.op_type, kernel, len(rows), flat.shape[1], pair_rows, largest_pair,
        int(sums.max(initial=0)), int((sums > INT32_MAX).sum()),
    )  # fmt: skip


def _depth_orders(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield `rows` flattened in the orders a kernel may read them: as stored, and with channels innermost (im2col)."""
    yield rows.reshape(len(rows), -1)
    if rows.ndim > 2:
        yield np.moveaxis(rows, 1, -1).reshape(len(rows), -1)


def pair_extremes(rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the least and the largest sum of two neighbouring u8 · s8 products in each of `rows` `[N, K]`.

    The kernel pairs weights 2i and 2i + 1 of its packed order; any two neighbours are taken, so that packing may
    start where it likes. Exact: an activation is 0 or 255 wherever that makes the sum extreme.
    """
    low, high = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for part in _parts(rows):
        negative, positive = (
            np.minimum(rows[part], 0).astype(np.int16),
            np.maximum(rows[part], 0).astype(np.int16),
        )
        if rows.shape[1] > 1:
            negative, positive = negative[:, 1:] + negative[:, :-1], positive[:, 1:] + positive[:, :-1]
        low[part] = 255 * negative.min(axis=1, initial=0).astype(np.int64)
        high[part] = 255 * positive.max(axis=1, initial=0).astype(np.int64)
    return low, high


def largest_sums(rows: NDArray[Any], limits: tuple[int, int]) -> NDArray[np.int64]:
    """Return for each of `rows` `[N, K]` the largest |Σ a·w| over activations within `limits`, which hold zero.

    Exact, and a bound of every partial sum: each product has its extreme's sign, so adding never comes back.
    """
    low, high = limits
    largest = np.zeros(len(rows), np.int64)
    for part in _parts(rows):
        positive = np.maximum(rows[part], 0).sum(axis=1, dtype=np.int64)
        negative = np.minimum(rows[part], 0).sum(axis=1, dtype=np.int64)
        largest[part] = np.maximum(positive * high + negative * low, -(positive * low + negative * high))
    return largest


def _parts(rows: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of rows that keep what is widened at once small."""
    stride = max(1, _ELEMENTS_AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), stride):
        yield slice(start, start + stride)


def _of_activations(
    node: ir.Node, left: tuple[int, int], right: tuple[int, int], *, is_unsigned: bool
) -> Product:
    """Return the product of two activations: bounded by its depth, where that is known."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    depth = shape[-1] if shape is not None and isinstance(shape[-1], int) else None
    largest = None if depth is None else depth * max(map(abs, left)) * max(map(abs, right))
    return Product(
        node.name or "", node.op_type, "u8u8" if is_unsigned else "s8s8", 1, depth, 0, None,
        largest, int(largest is not None and largest > INT32_MAX),
    )  # fmt: skip


def _block_product(node: ir.Node) -> Product:
    """Return a MatMulNBits: its integers are added block by block, so the block alone bounds them."""
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 32)
    # Kernels multiply the stored, unsigned integers and take the zero points off afterwards.
    largest = block * _BLOCK_ACTIVATION * (2**bits - 1)
    rows, depth = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
    return Product(node.name or "", node.op_type, "blocks", rows, depth, 0, None, largest, 0)


def _rows(integers: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return integers with their output channels first."""
    return integers if axis == 0 else np.moveaxis(integers, axis, 0)


def dequantized(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes `value`, if one does."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def stored_integers(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the constant integers behind `value`, seen through Transpose and what only renames them."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return constant_of(value)
    if producer.op_type == "Identity":
        return stored_integers(producer.inputs[0])
    if producer.op_type == "Transpose":
        array = stored_integers(producer.inputs[0])
        return None if array is None else np.transpose(array, producer.attributes.get_ints("perm", None))
    return None


def _grid_of(dequantize: ir.Node) -> tuple[int, int, bool]:
    """Return the least and largest integer of an activation less its zero point, and whether it is unsigned."""
    zero_point = constant_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    if zero_point is None:
        return 0, 255, True  # the default of the specification: uint8 with zero point 0
    info, zero = np.iinfo(zero_point.dtype), int(zero_point.reshape(-1)[0])
    return info.min - zero, info.max - zero, zero_point.dtype == np.uint8

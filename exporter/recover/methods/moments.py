"""Second moments of what the weights multiply: H = Σ x xᵀ over calibration inputs, layer by layer, in bounded memory.

One column of x for each weight of an output channel: of a MatMul or Gemm the activation's last axis, of a Conv the
patch under the kernel in the order (channel, height, width) that its flattened weights have. Layers that read the same
values share one matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from exporter.arrays import Float32Array
from exporter.model.graph import constant_of
from exporter.quantize.integers.rewrite import constant_matrix, is_matrix_product, is_transposed
from exporter.recover.methods.observe import observe

ROWS_A_SAMPLE = 2048
"""Inputs of one sample that enter a matrix at most: neighbouring patches of an image say much the same."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where a layer's inputs come from: the value it reads and, for a Conv, how it looks at it.

    `columns` is K, `groups` how many matrices `[K, K]` there are (1 but for grouped convolutions).
    """

    value: str
    columns: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of its matrices as float32."""
        return 4 * self.groups * self.columns * self.columns

    def rows(self, array: Float32Array) -> Float32Array:
        """Return the inputs in one sample's `array` as `[groups, rows, K]`, at most `ROWS_A_SAMPLE` rows."""
        if not self.kernel:
            flat = array.reshape(1, -1, array.shape[-1])
            return np.ascontiguousarray(flat[:, :: _stride(flat.shape[1])], np.float32)
        axes = tuple(range(2, array.ndim))
        count = len(self.kernel)
        widths = [(0, 0), (0, 0), *zip(self.pads[:count], self.pads[count:], strict=True)]
        padded = np.pad(array, widths)
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = sliding_window_view(padded, spans, axis=axes)
        steps = tuple(slice(None, None, step) for step in self.strides)
        inner = tuple(slice(None, None, step) for step in self.dilations)
        windows = windows[(slice(None), slice(None), *steps, *inner)]
        # [batch, channels, positions..., kernel...] → [positions of all, channels, kernel...], thinned before it is copied
        moved = np.moveaxis(windows, 1, 1 + count)
        places = moved.shape[: 1 + count]
        picked = np.unravel_index(np.arange(0, int(np.prod(places)), _stride(int(np.prod(places)))), places)
        patches = moved[picked]
        grouped = patches.reshape(len(patches), self.groups, -1)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)


def inputs_of(node: ir.Node) -> Inputs | None:
    """Return where the inputs of a Conv, Gemm or MatMul with a constant weight come from; `None` if it is none."""
    data = node.inputs[0] if node.inputs else None
    if data is None or data.name is None:
        return None
    if node.op_type == "Conv" and node.domain in {"", "ai.onnx"}:
        return _of_convolution(node, data.name)
    if not is_matrix_product(node) or is_transposed(node):
        return None
    matrix = constant_matrix(node)
    return Inputs(data.name, matrix.rows().shape[1]) if matrix is not None else None


def _of_convolution(node: ir.Node, value: str) -> Inputs | None:
    weight = constant_of(node.inputs[1])
    if weight is None or node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return None
    count = weight.ndim - 2
    ones, zeros = [1] * count, [0] * (2 * count)
    return Inputs(
        value,
        int(np.prod(weight.shape[1:])),
        node.attributes.get_int("group", 1),
        tuple(weight.shape[2:]),
        tuple(node.attributes.get_ints("strides", ones)),
        tuple(node.attributes.get_ints("dilations", ones)),
        tuple(node.attributes.get_ints("pads", zeros)),
    )


def second_moments(
    model: ir.Model,
    wanted: Sequence[Inputs],
    samples: Iterable[Mapping[str, np.ndarray]],
    memory_bytes: int,
) -> Iterator[tuple[Inputs, Float32Array]]:
    """Yield every one of `wanted` with its matrices float32 `[groups, K, K]`, in order.

    The samples are run once for each batch of matrices that fit `memory_bytes` together (a matrix that alone does not
    fit makes a batch of its own); a batch is dropped before the next is begun.
    """
    for batch in _batches(list(dict.fromkeys(wanted)), memory_bytes):
        sums = {item: np.zeros((item.groups, item.columns, item.columns), np.float32) for item in batch}
        for observed in observe(model, list(dict.fromkeys(item.value for item in batch)), samples):
            for item in batch:
                rows = item.rows(observed[item.value])
                sums[item] += rows.transpose(0, 2, 1) @ rows
        for item in batch:
            yield item, sums.pop(item)


def _batches(wanted: Sequence[Inputs], memory_bytes: int) -> Iterator[list[Inputs]]:
    batch: list[Inputs] = []
    held = 0
    for item in wanted:
        if batch and held + item.size_bytes > memory_bytes:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += item.size_bytes
    if batch:
        yield batch


def _stride(count: int) -> int:
    return max(1, -(-count // ROWS_A_SAMPLE))

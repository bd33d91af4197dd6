"""Weights by least squared error instead of by their largest: the weights' half of `rule = "auto"`.

Clipping a channel's few outliers lets its many other weights be finer (Nagel et al. 2021, "A White Paper on Neural
Network Quantization", §3.1). Needs no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.model.graph import constant_of, consumers, is_constant, matches
from exporter.quantize.integers.clipping import mse_scales
from exporter.quantize.integers.encodings import ChannelWeight
from exporter.quantize.integers.rewrite import constant_matrix, is_matrix_product
from exporter.quantize.integers.weights import dequantize_per_channel, quantize_per_channel, round_per_channel

WORTH_IT = 0.8
"""A channel is clipped if that leaves less than this share of its squared error.

A clipped weight is wrong by much and always in the same direction. Clipping for the last per cent of squared error cost
the digits CNN a tenth of a decibel and two pictures of 540; true outliers, which this bound keeps, cost far more left in.
"""


def clip_weights(model: ir.Model, keep: Sequence[str]) -> dict[str, ChannelWeight]:
    """Return int8 weights per output channel for the Conv, Gemm and MatMul of `model` that are not in `keep`.

    Only those where clipping is worth it: a name that is missing is best stored by its largest weights. Tables
    that a Gather reads too are left alone: they are stored by rows.
    """
    found: dict[str, ChannelWeight] = {}
    for node in model.graph:
        if matches(node.name or "", keep):
            continue
        held = _weight_and_axis(node)
        if held is None or (held[0].name or "") in found or _is_table(held[0]):
            continue
        weight, axis = held
        array = constant_of(weight)
        if array is None or array.dtype.name != "float32":
            continue
        widest = quantize_per_channel(array, axis)[1]
        scales = mse_scales(array, axis)
        worth_it = _error(array, scales, axis) < WORTH_IT * _error(array, widest, axis)
        if worth_it.any():
            scales = np.where(worth_it, scales, widest)
            found[weight.name or ""] = ChannelWeight(round_per_channel(array, scales, axis), scales, axis)
    return found


def _error(weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the squared error of each channel of `weight` at `scales`."""
    restored = dequantize_per_channel(round_per_channel(weight, scales, axis), scales, axis)
    others = tuple(index for index in range(weight.ndim) if index != axis)
    error: NDArray[np.float32] = np.square(weight - restored).sum(axis=others)
    return error


def _weight_and_axis(node: ir.Node) -> tuple[ir.Value, int] | None:
    """Return the initializer that holds a node's weight and which of its axes counts output channels."""
    if node.op_type == "Conv" and node.domain in {"", "ai.onnx"}:
        weight = node.inputs[1]
        return (weight, 0) if weight is not None and is_constant(weight) else None
    if not is_matrix_product(node):
        return None
    matrix = constant_matrix(node)
    return (matrix.source, 0 if matrix.by_output else 1) if matrix is not None else None


def _is_table(weight: ir.Value) -> bool:
    return any(
        reader.op_type == "Gather"
        or (reader.op_type in {"Transpose", "Identity"} and _is_table(reader.outputs[0]))
        for reader in consumers(weight)
    )

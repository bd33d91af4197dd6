"""Weights by least squared error instead of by their largest: the weights' half of `rule = "auto"`.

Clipping a channel's few outliers lets its many other weights be finer (Nagel et al. 2021, "A White Paper on Neural
Network Quantization", §3.1). Needs no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporter.graph import constant_of, consumers, is_constant, matches
from exporter.integers.clipping import mse_scales
from exporter.integers.encodings import ChannelWeight
from exporter.integers.rewrite import constant_matrix, is_matrix_product
from exporter.integers.weights import quantize_per_channel, round_per_channel


def clip_weights(model: ir.Model, keep: Sequence[str]) -> dict[str, ChannelWeight]:
    """Return int8 weights per output channel for the Conv, Gemm and MatMul of `model` that are not in `keep`.

    Only those where clipping lowers the error: a name that is missing is best stored by its largest weight. Tables
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
        scales = mse_scales(array, axis)
        if (scales < quantize_per_channel(array, axis)[1]).any():
            found[weight.name or ""] = ChannelWeight(round_per_channel(array, scales, axis), scales, axis)
    return found


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

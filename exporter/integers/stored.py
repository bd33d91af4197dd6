"""Convolution weights stored as int8 and computed in float: a smaller file at unchanged speed.

Weights are int8 per output channel, followed by Cast and Mul, which onnxruntime folds into float weights when
it loads the file. A DequantizeLinear says the same and is *not* folded: it runs at every inference and hides
the constant from the convolution's fast layouts (measured on x86-64, onnxruntime 1.32: depthwise layers 2 to
12 times slower, 3×3 convolutions of ResNet-50 up to 1.5 times).

Integer arithmetic is no way out: ConvInteger on activations quantised at run time takes 3 to 4 times as long
as the float convolution on layers of ResNet-50 and 13 to 40 times on depthwise ones.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.graph import is_constant
from exporter.integers.rewrite import CONVOLUTIONS, KEPT, Rewrite, array_of
from exporter.integers.weights import along_axis, quantize_per_channel

SMALLEST_SAVING_BYTES = 1024
"""Below this the two added operators and the scales eat what int8 saves."""


def store_convolutions(rewrite: Rewrite) -> dict[ir.Node, str]:
    """Store the constant weights of all convolutions as int8 and return them with why that failed.

    The reason is empty for those whose weights are now int8.
    """
    reasons: dict[ir.Node, str] = {}
    stored: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in list(rewrite.graph):
        if node.op_type not in CONVOLUTIONS or node.domain not in {"", "ai.onnx"}:
            continue
        reasons[node] = storing_obstacle(rewrite, node)
        weight = node.inputs[1]
        if reasons[node] or weight is None:
            continue
        key = (weight, channel_axis(node, weight))
        if key not in stored:
            stored[key] = _store(rewrite, node, *key)
        node.replace_input_with(1, stored[key])
    return reasons


def storing_obstacle(rewrite: Rewrite, node: ir.Node) -> str:
    """Return why the weight of a convolution cannot be stored as int8 ("" if it can)."""
    weight = node.inputs[1]
    if rewrite.is_kept(node):
        return KEPT
    if weight is None or not is_constant(weight) or weight.is_graph_input() or weight.const_value is None:
        return "its weight is computed at run time"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {str(weight.dtype).lower()}, not float32"
    channels = weight.const_value.shape[channel_axis(node, weight)]
    if isinstance(channels, int) and 3 * weight.const_value.size - 4 * channels < SMALLEST_SAVING_BYTES:
        return "its weights are too few for int8 to make the file smaller"
    return ""


def channel_axis(node: ir.Node, weight: ir.Value) -> int:
    """Return the axis of output channels; of a depthwise ConvTranspose `[in, 1, …]`, that of its channels."""
    if node.op_type == "Conv" or (weight.const_value is not None and weight.const_value.shape[1] == 1):
        return 0
    return 1


def _store(rewrite: Rewrite, node: ir.Node, weight: ir.Value, axis: int) -> ir.Value:
    array = array_of(weight)
    integers, scales = quantize_per_channel(array, axis)
    name = weight.name or ""
    constant = rewrite.constant(f"{name}/int8", integers)
    scale = rewrite.constant(f"{name}/scale", np.ascontiguousarray(along_axis(scales, axis, array.ndim)))
    (steps,) = rewrite.insert(node, "Cast", [constant], f"{name}/cast", to=int(ir.DataType.FLOAT))
    (restored,) = rewrite.insert(node, "Mul", [steps, scale], f"{name}/dequantized")
    restored.shape, restored.type = weight.shape, weight.type
    return restored

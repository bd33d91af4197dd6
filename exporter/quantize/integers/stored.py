"""Convolution weights stored as integers and computed in float: a smaller file at unchanged speed.

Weights are int8 per output channel, followed by Cast and Mul, which onnxruntime folds into float weights when
it loads the file. A DequantizeLinear says the same and is *not* folded: it runs at every inference and hides
the constant from the convolution's fast layouts (measured on x86-64, onnxruntime 1.32: depthwise layers 2 to
12 times slower, 3×3 convolutions of ResNet-50 up to 1.5 times).

On request weights are int4 in blocks along what one output channel sums over (`[N, K]`, K = inputs · kernel).
Two sit in a byte, and Mod and BitShift, which onnxruntime folds too, take them apart: the INT4 type of ONNX
would need opset 21 and a DequantizeLinear, with the cost above. All of it is folded: ResNet-50 runs as fast as in
float (77 against 79 ms, one thread) from 15.0 MB instead of 24.9 in int8, and takes 233 ms to load instead of 80.

Integer arithmetic is no way out: ConvInteger on activations quantised at run time takes 3 to 4 times as long
as the float convolution on layers of ResNet-50 and 13 to 40 times on depthwise ones.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from exporter.errors import InternalError
from exporter.model.graph import is_constant
from exporter.quantize.integers.encodings import ChannelWeight, Encodings
from exporter.quantize.integers.rewrite import CONVOLUTIONS, KEPT, Rewrite, array_of
from exporter.quantize.integers.weights import Blocks, along_axis, quantize_blocks, quantize_per_channel

SMALLEST_SAVING_BYTES = 1024
"""Below this the two added operators and the scales eat what int8 saves."""
_UNPACKING_BYTES = 2048
"""What the operators that take int4 apart add to a file, measured on the digits CNN and rounded up."""
FOUR_BITS = "stored as int4, computed in float"
"""Not a reason to stay float: marks a convolution that has the int4 storage that was asked for."""
NOT_SMALLER_IN_FOUR = "in int4 blocks its weights would not be smaller; stored as int8"
FLOAT = int(ir.DataType.FLOAT)
_NOTHING_SETTLED = Encodings()


def store_convolutions(
    rewrite: Rewrite, encodings: Encodings = _NOTHING_SETTLED, *, four: int | None = None
) -> dict[ir.Node, str]:
    """Store the constant weights of all convolutions as integers and return them with why that failed.

    The reason is empty for those whose weights are now int8, and `FOUR_BITS` for those in int4: they are the
    ones of which `encodings.bits` says 4 while `four`, the block size, is given, as far as int4 is smaller; the
    others of those are int8 and have a reason that says so.
    """
    reasons: dict[ir.Node, str] = {}
    stored: dict[tuple[ir.Value, int, int], ir.Value] = {}
    for node in list(rewrite.graph):
        if node.op_type not in CONVOLUTIONS or node.domain not in {"", "ai.onnx"}:
            continue
        reasons[node] = storing_obstacle(rewrite, node)
        weight = node.inputs[1]
        if reasons[node] or weight is None:
            continue
        asked = four if encodings.bits.get(node.name or "") == 4 else None
        axis, block = channel_axis(node, weight), _block(node, weight, asked)
        key = (weight, axis, block)
        if key not in stored:
            stored[key] = (
                _store_blocks(rewrite, node, weight, encodings, block)
                if block
                else _store(rewrite, node, weight, axis, encodings)
            )
        node.replace_input_with(1, stored[key])
        reasons[node] = FOUR_BITS if block else NOT_SMALLER_IN_FOUR if asked else ""
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


def chosen_channels(encodings: Encodings, weight: ir.Value, axis: int) -> ChannelWeight | None:
    """Return the int8 integers that are settled for `weight` along `axis`; `None` if there are none.

    Raises `InternalError` if they are of another shape.
    """
    settled = encodings.channels.get(weight.name or "")
    if settled is None or settled.axis != axis:
        return None
    _require_shape(weight, settled.integers.shape, tuple(array_of(weight).shape))
    return settled


def chosen_blocks(encodings: Encodings, weight: ir.Value, shape: tuple[int, ...], bits: int) -> Blocks | None:
    """Return the blocks of `bits` that are settled for `weight`, a matrix `[N, K]` of `shape`; `None` if none are.

    Raises `InternalError` if they are of another shape.
    """
    settled = encodings.blocks.get(weight.name or "")
    if settled is None or settled.bits != bits:
        return None
    _require_shape(weight, (len(settled.packed), settled.columns), tuple(shape))
    return settled


def _require_shape(weight: ir.Value, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InternalError(
            f"the integers chosen for {weight.name} have shape {found}, its rows {expected}",
            fix="report this model as a bug",
        )


def _block(node: ir.Node, weight: ir.Value, asked: int | None) -> int:
    """Return the block for int4 storage of a convolution; 0 where it is not asked for or int8 is smaller."""
    if asked is None or node.op_type != "Conv" or weight.const_value is None:
        return 0
    rows, *rest = (int(size) for size in weight.const_value.shape)  # type: ignore[arg-type]
    depth = prod(rest)
    block = min(
        (size for size in (32, 64, 128) if size <= max(asked, 32)), key=lambda b: (-(-depth // b) * b, -b)
    )
    # Half a byte a weight, two bytes of scale and half a byte of zero point a block.
    in_four = rows * -(-depth // block) * (block / 2 + 2.5) + _UNPACKING_BYTES
    return block if in_four < rows * (depth + 4) else 0


def _store(rewrite: Rewrite, node: ir.Node, weight: ir.Value, axis: int, encodings: Encodings) -> ir.Value:
    array = array_of(weight)
    settled = chosen_channels(encodings, weight, axis)
    integers, scales = (
        quantize_per_channel(array, axis) if settled is None else (settled.integers, settled.scales)
    )
    name = weight.name or ""
    constant = rewrite.constant(f"{name}/int8", integers)
    scale = rewrite.constant(f"{name}/scale", np.ascontiguousarray(along_axis(scales, axis, array.ndim)))
    (steps,) = rewrite.insert(node, "Cast", [constant], f"{name}/cast", to=FLOAT)
    (restored,) = rewrite.insert(node, "Mul", [steps, scale], f"{name}/dequantized")
    restored.shape, restored.type = weight.shape, weight.type
    return restored


def _store_blocks(
    rewrite: Rewrite, node: ir.Node, weight: ir.Value, encodings: Encodings, block_size: int
) -> ir.Value:
    """Return `weight` `[N, …]` as int4 blocks of its rows `[N, K]`, taken apart by operators folded when loaded."""
    array = array_of(weight)
    rows = array.reshape(len(array), -1)
    blocks = chosen_blocks(encodings, weight, rows.shape, 4) or quantize_blocks(rows, block_size, 4)
    name, count = weight.name or "", blocks.scales.shape[1]
    padded = count * blocks.block_size
    packed = rewrite.constant(f"{name}/int4", blocks.packed)
    steps = _floats(rewrite, node, packed, (len(rows), count, blocks.block_size), blocks.block_size, name)
    middle = rewrite.constant(f"{name}/middle", np.asarray(8.0, np.float32))
    if blocks.zero_points is not None:
        stored = rewrite.constant(f"{name}/zero_point", blocks.zero_points)
        middle = _floats(rewrite, node, stored, (len(rows), count, 1), count, f"{name}/zero")
    halves = (blocks.scales.view(np.uint32) >> 16).astype(np.uint16)[..., None]
    scale = rewrite.constant(f"{name}/scale", halves, ir.DataType.BFLOAT16)
    (scale,) = rewrite.insert(node, "Cast", [scale], f"{name}/scale_float", to=FLOAT)
    (centred,) = rewrite.insert(node, "Sub", [steps, middle], f"{name}/centred")
    (values,) = rewrite.insert(node, "Mul", [centred, scale], f"{name}/scaled")
    if padded != rows.shape[1]:
        values = _reshaped(rewrite, node, values, (len(rows), padded), f"{name}/rows")
        bounds = [
            rewrite.constant(f"{name}/{bound}", np.asarray([number], np.int64))
            for bound, number in (("start", 0), ("end", rows.shape[1]), ("axis", 1))
        ]
        (values,) = rewrite.insert(node, "Slice", [values, *bounds], f"{name}/cut")
    restored = _reshaped(rewrite, node, values, array.shape, f"{name}/dequantized")
    restored.shape, restored.type = weight.shape, weight.type
    return restored


def _floats(
    rewrite: Rewrite, node: ir.Node, packed: ir.Value, shape: tuple[int, ...], count: int, name: str
) -> ir.Value:
    """Return nibbles, the low one of a byte first, as floats of `shape`; a row of bytes holds `count` of them."""
    sixteen = rewrite.constant(f"{name}/sixteen", np.asarray(16, np.uint8))
    four = rewrite.constant(f"{name}/four", np.asarray(4, np.uint8))
    last = rewrite.constant(f"{name}/last", np.asarray([-1], np.int64))
    halves = [
        rewrite.insert(node, "Mod", [packed, sixteen], f"{name}/low")[0],
        rewrite.insert(node, "BitShift", [packed, four], f"{name}/high", direction="RIGHT")[0],
    ]
    halves = [rewrite.insert(node, "Unsqueeze", [half, last], f"{half.name}/pair")[0] for half in halves]
    (pairs,) = rewrite.insert(node, "Concat", halves, f"{name}/nibbles", axis=-1)
    bytes_shape = () if packed.shape is None else tuple(int(size) for size in packed.shape)  # type: ignore[arg-type]
    if count % 2:  # the last byte of a row is half used
        pairs = _reshaped(rewrite, node, pairs, (*bytes_shape[:-1], 2 * bytes_shape[-1]), f"{name}/padded")
        bounds = [
            rewrite.constant(f"{name}/{bound}", np.asarray([number], np.int64))
            for bound, number in (("nibble_start", 0), ("nibble_end", count), ("nibble_axis", -1))
        ]
        (pairs,) = rewrite.insert(node, "Slice", [pairs, *bounds], f"{name}/used")
    value = _reshaped(rewrite, node, pairs, shape, f"{name}/integers")
    return rewrite.insert(node, "Cast", [value], f"{name}/cast", to=FLOAT)[0]


def _reshaped(
    rewrite: Rewrite, node: ir.Node, value: ir.Value, shape: tuple[int, ...], name: str
) -> ir.Value:
    target = rewrite.constant(f"{name}/shape", np.asarray(shape, np.int64))
    return rewrite.insert(node, "Reshape", [value, target], name)[0]

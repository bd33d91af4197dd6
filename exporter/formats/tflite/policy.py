"""What becomes of each operator of a float `.tflite` under a scheme: decisions only, nothing is changed here.

The choices stand on measurements (digits CNN and ViT of `exporter.demo`, LiteRT 2.3, XNNPACK, x86-64):

* Softmax, GELU, RSQRT, the arithmetic of LayerNorm and products of two activations stay float in static int8.
  XNNPACK has no int8 kernel for them, and there the error collects.
* HARD_SWISH and LOGISTIC stay float for the same reason: an int8 HARD_SWISH runs in the reference kernel and
  made the digits CNN 5 times slower than the conversions around a float one.
* Depthwise convolutions stay float in dynamic int8: no fast kernel, twice the time, 9 dB lost.
* int4 in blocks exists for FULLY_CONNECTED only. A convolution has one int4 scale a channel: the digits CNN goes from
  30.6 dB to 19.8 by nearest rounding and 25.8 by rounding with calibration data, 0.4 points of accuracy, and takes 1.8
  times as long, for a file smaller by a third. Convolutions keep int8 weights unless int4 is asked for.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from exporter.formats.layer_names import LITERT_KINDS, is_onnx_layer
from exporter.formats.tflite.graph import Operator, is_constant, operators, shape_of, tensor_name, tensor_type
from exporter.schemes import Method, Scheme

WEIGHTED = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "EMBEDDING_LOOKUP"}
)
PRODUCTS = WEIGHTED | {"BATCH_MATMUL"}
_INTEGER_ARITHMETIC = frozenset(
    {"ADD", "SUB", "MUL", "MEAN", "SUM", "AVERAGE_POOL_2D", "MAX_POOL_2D", "RELU", "RESIZE_BILINEAR"}
)
_INTEGER_MOVEMENT = frozenset(
    {
        *("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "SPLIT", "CONCATENATION", "PAD"),
        "RESIZE_NEAREST_NEIGHBOR",
    }
)
DATA_MOVEMENT = _INTEGER_MOVEMENT | {
    *("PADV2", "MIRROR_PAD", "PACK", "UNPACK", "BROADCAST_TO", "EXPAND_DIMS", "SQUEEZE", "CAST", "SHAPE"),
    *("SPACE_TO_DEPTH", "DEPTH_TO_SPACE"),
}
_BLOCK_SIZES = (128, 64, 32)


class Treatment(StrEnum):
    """How an operator's weights and activations are stored and computed."""

    FLOAT = "float"
    STATIC8 = "static int8"
    DYNAMIC8 = "int8 weights, activations quantised at run time"
    WEIGHT8 = "int8 weights, float arithmetic"
    WEIGHT4 = "int4 weights"
    WEIGHT16 = "float16 weights"


@dataclass(frozen=True, slots=True)
class Decision:
    """One operator's treatment; `block_size` 0 means one scale a channel, `reason` says why it stays float."""

    operator: Operator
    treatment: Treatment
    block_size: int = 0
    reason: str = ""


def decide(
    model: Any, scheme: Scheme, keep: Sequence[str], bits: Mapping[str, int] = MappingProxyType({})
) -> tuple[Decision, ...]:
    """Return what becomes of every operator of the main graph, in execution order.

    `bits` are widths by ONNX name where a scheme of int4 weights is to differ: 8, or 4 of a convolution.
    """
    every = tuple(operators(model))
    static = _static_operators(model, every, keep) if scheme.method is Method.STATIC else frozenset()
    return tuple(_decide(model, operator, scheme, keep, static, bits) for operator in every)


def moves(model: Any) -> dict[str, str]:
    """Return {result: operand}, by tensor name in execution order, of operators that only move one float tensor."""
    found: dict[str, str] = {}
    for operator in operators(model):
        operands = _operands(model, operator)
        if operator.kind in _INTEGER_MOVEMENT and len(operands) == 1:
            source = tensor_name(model, operands[0])
            found.update((tensor_name(model, output), source) for output in operator.outputs)
    return found


def is_kept(operator: Operator, patterns: Sequence[str]) -> bool:
    """Whether a `keep` glob names the operator, its torch module, or a module that holds it.

    `blocks.3.gate.excite/conv_2d` is matched by its own name, by `blocks.3.gate.excite`, by any outer path
    (`blocks.3`), and as a parameter (`blocks.3.gate.excite.weight`), so that `head.*` finds a lone `head`.
    A fused operator is kept when any of its modules is. Names of the ONNX graph (`blocks.3.gate.excite/Conv`) mean
    the operators that theirs became.
    """
    if any(_is_onnx_layer(operator, pattern) for pattern in patterns):
        return True
    names = {operator.name}
    for path in operator.module_paths:
        steps = path.split(".")
        names.update(".".join(steps[:count]) for count in range(1, len(steps) + 1))
        names.update({f"{path}.weight", f"{path}.bias"})
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _is_onnx_layer(operator: Operator, pattern: str) -> bool:
    return is_onnx_layer(pattern, operator.kind, operator.module_paths, LITERT_KINDS)


def _width(operator: Operator, bits: Mapping[str, int], usual: int) -> int:
    """Return the bits of an operator's weights: `bits` by ONNX name, the widest where several mean it."""
    asked = [width for name, width in bits.items() if _is_onnx_layer(operator, name)]
    return max(asked, default=usual)


def _decide(
    model: Any,
    operator: Operator,
    scheme: Scheme,
    keep: Sequence[str],
    static: frozenset[int],
    bits: Mapping[str, int],
) -> Decision:
    if is_kept(operator, keep):
        return Decision(operator, Treatment.FLOAT, reason="named in keep")
    match scheme.method:
        case Method.STATIC:
            if operator.index in static:
                return Decision(operator, Treatment.STATIC8)
            if operator.kind == "EMBEDDING_LOOKUP" and _owns_weight(model, operator):
                # Reads rows of a table: no activation to calibrate, and the table is most of a small language model.
                return Decision(operator, Treatment.DYNAMIC8)
            return Decision(operator, Treatment.FLOAT, reason=_static_reason(operator.kind))
        case Method.FLOAT if scheme.weight_bits == 16 and _owns_weight(model, operator):
            return Decision(operator, Treatment.WEIGHT16, reason="weights float16, arithmetic float")
        case Method.FLOAT:
            return Decision(operator, Treatment.FLOAT, reason=f"the scheme is {scheme}")
    if not _owns_weight(model, operator):
        return Decision(operator, Treatment.FLOAT, reason="no stored weight to quantise")
    if scheme.method is Method.DYNAMIC:
        if operator.kind == "DEPTHWISE_CONV_2D":
            return Decision(
                operator, Treatment.FLOAT, reason="XNNPACK has no depthwise kernel with run-time ranges"
            )
        return Decision(operator, Treatment.DYNAMIC8)
    if scheme.weight_bits == 4:
        convolution = operator.kind == "CONV_2D"
        width = _width(operator, bits, 8 if convolution else 4)
        return (
            _four_bits(model, operator, scheme.block_size or 0)
            if width == 4
            else Decision(operator, Treatment.WEIGHT8)
        )
    return Decision(operator, Treatment.WEIGHT8)


def _owns_weight(model: Any, operator: Operator) -> bool:
    if operator.kind not in WEIGHTED or len(operator.inputs) < 2:
        return False
    return is_constant(model, operator.inputs[1]) and tensor_type(model, operator.inputs[1]) == "FLOAT32"


def _four_bits(model: Any, operator: Operator, asked: int) -> Decision:
    if operator.kind == "CONV_2D":
        return Decision(operator, Treatment.WEIGHT4)
    if operator.kind not in {"FULLY_CONNECTED", "EMBEDDING_LOOKUP"}:
        return Decision(operator, Treatment.WEIGHT8)
    width = shape_of(model, operator.inputs[1])[-1]
    if width <= asked:
        return Decision(operator, Treatment.WEIGHT4)
    block = next((size for size in _BLOCK_SIZES if size <= asked and width % size == 0), 0)
    return Decision(operator, Treatment.WEIGHT4, block) if block else Decision(operator, Treatment.WEIGHT8)


def _static_reason(kind: str) -> str:
    if kind in WEIGHTED:
        return "its weight is computed, not stored"
    if kind == "BATCH_MATMUL":
        return "a product of two activations: slower and less exact in int8"
    if kind in _INTEGER_ARITHMETIC | _INTEGER_MOVEMENT:
        return "between float operators, where converting to int8 and back gains nothing"
    return "XNNPACK has no int8 kernel for it"


def _static_operators(model: Any, every: Sequence[Operator], keep: Sequence[str]) -> frozenset[int]:
    """Return the indices of operators that run in int8: the products, and what lies between int8 tensors.

    A tensor is available in int8 if a chosen operator makes it or a product reads it. Arithmetic and data
    movement join when all their operands are available and something chosen reads the result.
    """
    chosen = {
        operator.index
        for operator in every
        if operator.kind in WEIGHTED - {"EMBEDDING_LOOKUP"}
        and _owns_weight(model, operator)
        and not is_kept(operator, keep)
    }
    anchors = frozenset(chosen)
    available = {
        tensor for operator in every if operator.index in chosen for tensor in _floats(model, operator)
    }
    for operator in every:
        if _may_join(model, operator, keep) and set(_operands(model, operator)) <= available:
            chosen.add(operator.index)
            available.update(operator.outputs)
    return frozenset(_with_integer_readers(every, chosen, anchors))


def _with_integer_readers(every: Sequence[Operator], chosen: set[int], anchors: frozenset[int]) -> set[int]:
    """Return `chosen` without operators whose result only float operators read (the anchors stay)."""
    read = {tensor for operator in every if operator.index in anchors for tensor in operator.inputs}
    useful = set(anchors)
    for operator in reversed(every):
        if operator.index in chosen and (operator.index in anchors or read & set(operator.outputs)):
            useful.add(operator.index)
            read.update(operator.inputs)
    return useful


def _may_join(model: Any, operator: Operator, keep: Sequence[str]) -> bool:
    if operator.kind not in _INTEGER_ARITHMETIC | _INTEGER_MOVEMENT or is_kept(operator, keep):
        return False
    # ai-edge-quantizer 0.10 gives a stored operand of CONCATENATION scales of the wrong rank.
    stored = any(is_constant(model, tensor) for tensor in operator.inputs if tensor >= 0)
    return bool(_operands(model, operator)) and not (operator.kind == "CONCATENATION" and stored)


def _operands(model: Any, operator: Operator) -> list[int]:
    return [
        tensor
        for tensor in operator.inputs
        if tensor >= 0 and tensor_type(model, tensor) == "FLOAT32" and not is_constant(model, tensor)
    ]


def _floats(model: Any, operator: Operator) -> list[int]:
    return [*_operands(model, operator), *operator.outputs]

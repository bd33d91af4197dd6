"""Which operators of a finished `.tflite` are quantised, read from the file itself and not from the plan.

Runs in a child process. Reasons for what stayed float come from the plan; whether it did comes from the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from exporter.artifacts import Coverage, LayerCoverage
from exporter.formats.tflite.graph import Operator, is_constant, operators, shape_of, tensor_type
from exporter.formats.tflite.policy import DATA_MOVEMENT

_INTEGER_WEIGHTS = frozenset({"INT8", "INT4", "INT2", "UINT8"})
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
_FLOATS = frozenset({"FLOAT32", "FLOAT16"})


def coverage(model: Any, reasons: Mapping[str, str]) -> Coverage:
    """Return the coverage of the main graph; `reasons` by operator name for what stayed float.

    Counts every operator that computes on float or quantised tensors, or owns a stored table of them;
    conversions and pure data movement are not operators of the model.
    """
    stored = _weights_behind_dequantize(model)
    layers: list[LayerCoverage] = []
    owned: set[int] = set()
    for operator in operators(model):
        if operator.kind in _CONVERSIONS | DATA_MOVEMENT or not _computes(model, operator):
            continue
        quantized = _is_quantized(model, operator, stored)
        weights = {stored.get(tensor, tensor) for tensor in operator.inputs if tensor >= 0}
        new = {
            tensor for tensor in weights if is_constant(model, tensor) and _is_numeric(model, tensor)
        } - owned
        owned |= new
        layers.append(
            LayerCoverage(
                name=operator.name,
                op=operator.kind,
                quantized=quantized,
                macs=macs(model, operator),
                weight_bytes=4 * sum(math.prod(shape_of(model, tensor)) for tensor in new),
                reason="" if quantized else reasons.get(operator.name, "left float by the quantiser"),
            )
        )
    return Coverage(tuple(layers))


def macs(model: Any, operator: Operator) -> int:
    """Return the multiply-accumulates of one run of `operator`, from its shapes; 0 where it has none."""
    if not operator.outputs or len(operator.inputs) < 2:
        return 0
    results = math.prod(shape_of(model, operator.outputs[0]))
    match operator.kind:
        case "CONV_2D":
            return results * math.prod(shape_of(model, operator.inputs[1])[1:])
        case "DEPTHWISE_CONV_2D":
            return results * math.prod(shape_of(model, operator.inputs[1])[1:3])
        case "FULLY_CONNECTED":
            return results * shape_of(model, operator.inputs[1])[-1]
        case "BATCH_MATMUL":
            left = shape_of(model, operator.inputs[0])
            return results * (left[-2] if operator.options.adjX else left[-1])
        case "TRANSPOSE_CONV" if len(operator.inputs) > 2:
            # Filters are [out, height, width, in]: every input element meets out · height · width of them.
            return math.prod(shape_of(model, operator.inputs[2])) * math.prod(
                shape_of(model, operator.inputs[1])[:3]
            )
    return 0


def _weights_behind_dequantize(model: Any) -> dict[int, int]:
    """Return the stored integer (or float16) tensor behind each float tensor that a DEQUANTIZE unpacks."""
    return {
        operator.outputs[0]: operator.inputs[0]
        for operator in operators(model)
        if operator.kind == "DEQUANTIZE" and is_constant(model, operator.inputs[0])
    }


def _computes(model: Any, operator: Operator) -> bool:
    tensors = [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor >= 0]
    return any(tensor_type(model, tensor) in _FLOATS | {"INT8"} for tensor in tensors)


def _is_quantized(model: Any, operator: Operator, stored: Mapping[int, int]) -> bool:
    present = [tensor for tensor in operator.inputs if tensor >= 0]
    behind = [stored.get(tensor, tensor) for tensor in present]
    if any(is_constant(model, t) and tensor_type(model, t) in _INTEGER_WEIGHTS for t in behind):
        return True
    return tensor_type(model, operator.outputs[0]) == "INT8"


def _is_numeric(model: Any, tensor: int) -> bool:
    quantization = model.subgraphs[0].tensors[tensor].quantization
    scales = getattr(quantization, "scale", None)
    has_scale = scales is not None and len(scales) > 0
    kind = tensor_type(model, tensor)
    return kind in _FLOATS or kind in _INTEGER_WEIGHTS or (kind == "INT32" and has_scale)

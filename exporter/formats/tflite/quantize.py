"""Carry out `tflite_policy`'s decisions on a float `.tflite` with litert-quantizer, and refuse unsound results.

Runs in a child process. Ranges come from `tflite_calibrate`; litert-quantizer's own calibrator is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from litert_quantizer import qtyping, quantizer

from calibration.ranges import Range
from exporter.formats.tflite.graph import (
    canonical_bytes,
    is_constant,
    operator_kind,
    operators,
    read_model,
    tensor_name,
    tensor_type,
)
from exporter.formats.tflite.policy import Decision, Treatment
from exporter.formats.tflite.scales import require_finite_scales

_QUANTIZER_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
_GRANULARITIES = {
    0: qtyping.QuantGranularity.CHANNELWISE,
    32: qtyping.QuantGranularity.BLOCKWISE_32,
    64: qtyping.QuantGranularity.BLOCKWISE_64,
    128: qtyping.QuantGranularity.BLOCKWISE_128,
}
# Weights with many scales beside float activations. tflite-runtime 2.14 loads such files under the versions that
# litert-quantizer leaves, reads one scale (or crashes on blocks), and computes garbage: under these it refuses.
_PER_CHANNEL_VERSIONS = {"FULLY_CONNECTED": 12, "EMBEDDING_LOOKUP": 4}
_BLOCKWISE_VERSIONS = {"FULLY_CONNECTED": 14, "EMBEDDING_LOOKUP": 5}


def quantize(model: Path, decisions: Sequence[Decision], ranges: Mapping[str, Range]) -> bytes:
    """Return the bytes of `model` with every decision carried out; `ranges` by tensor name for static int8.

    Raises `GateError` naming the tensor if a scale is not a positive finite number.
    """
    worker = quantizer.Quantizer(model.read_bytes())
    for decision in decisions:
        _configure(worker, decision)
    calibration = {
        name: {"min": np.array([span.low], np.float32), "max": np.array([span.high], np.float32)}
        for name, span in ranges.items()
    }
    result = worker.quantize(calibration or None, enable_progress_bar=False, enable_progress_report=False)
    quantized = read_model(bytes(result.quantized_model))
    require_finite_scales(quantized)
    _raise_versions(quantized, decisions)
    return canonical_bytes(quantized)


def activations(model: Any, decisions: Sequence[Decision]) -> frozenset[str]:
    """Return the names of the float tensors whose ranges the static decisions need."""
    return frozenset(
        tensor_name(model, tensor)
        for decision in decisions
        if decision.treatment is Treatment.STATIC8
        for tensor in (*decision.operator.inputs, *decision.operator.outputs)
        if tensor >= 0 and not is_constant(model, tensor) and tensor_type(model, tensor) == "FLOAT32"
    )


def _configure(worker: quantizer.Quantizer, decision: Decision) -> None:
    kind = decision.operator.kind
    scope = f"^{re.escape(decision.operator.name)};$"
    name = (
        qtyping.TFLOperationName(_QUANTIZER_NAMES.get(kind, kind))
        if decision.treatment is not Treatment.FLOAT
        else None
    )
    match decision.treatment:
        case Treatment.STATIC8:
            worker.add_static_config(scope, name, 8, 8)
        case Treatment.DYNAMIC8:
            worker.add_dynamic_config(scope, name, 8)
        case Treatment.WEIGHT8:
            worker.add_weight_only_config(scope, name, 8)
        case Treatment.WEIGHT4:
            # Blocks exist only with activations quantised at run time; XNNPACK's kernel is qd8-f32-qb4w.
            worker.add_dynamic_config(scope, name, 4, _GRANULARITIES[decision.block_size])
        case Treatment.WEIGHT16:
            worker.add_weight_only_config(
                scope, name, 16, algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING
            )


def needs_current_runtime(model: Any) -> bool:
    """Whether runtimes of TensorFlow Lite 2.14 and before refuse the file, as `quantize` makes them."""
    return any(
        code.version >= _PER_CHANNEL_VERSIONS.get(operator_kind(model, operator), code.version + 1)
        for operator in model.subgraphs[0].operators
        for code in (model.operatorCodes[operator.opcodeIndex],)
    )


def _raise_versions(model: Any, decisions: Sequence[Decision]) -> None:
    blocks = {decision.operator.name for decision in decisions if decision.block_size}
    graph = model.subgraphs[0]
    for operator in operators(model):
        versions = _BLOCKWISE_VERSIONS if operator.name in blocks else _PER_CHANNEL_VERSIONS
        is_hybrid = (
            operator.kind in versions
            and tensor_type(model, operator.outputs[0]) == "FLOAT32"
            and tensor_type(model, operator.inputs[1]) in {"INT8", "INT4"}
        )
        if is_hybrid:
            code = model.operatorCodes[graph.operators[operator.index].opcodeIndex]
            code.version = max(code.version, versions[operator.kind])

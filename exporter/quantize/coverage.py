"""What became of every operator of the float graph: quantised, or left float and why."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from exporter.artifacts import Coverage, LayerCoverage
from exporter.model.graph import floating_nodes, is_float, node_macs
from exporter.quantize.integers.outcome import Outcome

_FRAGILE = frozenset(
    {"LayerNormalization", "Softmax", "Gelu", "Erf", "Exp", "Pow", "Sqrt", "Div", "Tanh", "ReduceMean", "Sigmoid",
     "HardSwish", "HardSigmoid", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "Swish"}
)  # fmt: skip
FRAGILE_REASON = "its int8 form costs accuracy and it is a small share of the work"
CARRIER_REASON = "not between int8 convolutions, where int8 would gain nothing"
FLOAT_REASON = "the scheme is float"
WEIGHTLESS_REASON = "has no weights, and the scheme quantises weights only"


def coverage_of(
    model: ir.Model, outcome: Outcome | None, axes: Mapping[str, int], *, weights_only: bool
) -> Coverage:
    """Return the coverage of `outcome` over the operators of the float graph `model`.

    `outcome` is `None` for a float artifact. A constant that several operators read counts for the first.
    """
    macs = node_macs(model, axes)
    counted: set[int] = set()
    layers = []
    for node in floating_nodes(model):
        name = node.name or ""
        quantized = outcome is not None and name in outcome.quantized
        reason = "" if quantized else _reason(node, outcome, weights_only=weights_only)
        layers.append(
            LayerCoverage(
                name, node.op_type, quantized, macs.get(name, 0), _weight_bytes(node, counted), reason
            )
        )
    return Coverage(tuple(layers))


def _weight_bytes(node: ir.Node, counted: set[int]) -> int:
    total = 0
    for value in node.inputs:
        if value is None or value.producer() is not None or value.const_value is None or not is_float(value):
            continue
        if id(value) not in counted:
            counted.add(id(value))
            total += 4 * value.const_value.size
    return total


def _reason(node: ir.Node, outcome: Outcome | None, *, weights_only: bool) -> str:
    if outcome is None:
        return FLOAT_REASON
    known = outcome.reasons.get(node.name or "")
    if known:
        return known
    if weights_only:
        return WEIGHTLESS_REASON
    return FRAGILE_REASON if node.op_type in _FRAGILE else CARRIER_REASON

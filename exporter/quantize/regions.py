"""Decide which operators of a float graph a static scheme quantises, and where activations meet a grid.

Reads the graph, changes nothing. What onnxruntime executes in int8 is written here as data:

* *compute* operators (Conv, Gemm, MatMul) carry nearly all the work and are quantised wherever their weights
  are constants of a supported form (MatMul also between two activations);
* *carriers* (Add, Mul, pooling, Concat, Reshape, …) are quantised only between quantised convolutions, where
  staying in int8 saves a round trip and costs little accuracy;
* everything else stays float: LayerNormalization, Softmax, Gelu and their like collapse accuracy in int8 and
  are a small share of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from exporter.model.graph import consumers, is_constant, is_float, matches
from exporter.quantize.integers.rewrite import KEPT, constant_matrix

FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Absorbed by the quantisation of their output when they alone follow an int8 operator."""
SAME_GRID_CARRIERS = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Carriers that move integers as they are: output grid = input grid."""
OWN_GRID_CARRIERS = frozenset(
    {"GlobalAveragePool", "AveragePool", "Add", "Mul", "Concat", "LeakyRelu", "Sigmoid"}
)
_CONVOLUTIONS = frozenset({"Conv"})


@dataclass(frozen=True, slots=True)
class Regions:
    """The decision: `quantized` node names; `grids` are names of values that get a QuantizeLinear /
    DequantizeLinear pair, `same_grid` maps such a value to the one whose grid it shares; `reasons` says
    of each compute operator or carrier left in float why.
    """

    quantized: frozenset[str]
    grids: tuple[str, ...]
    same_grid: dict[str, str]
    reasons: dict[str, str]


def decide_regions(model: ir.Model, keep: Sequence[str]) -> Regions:
    """Return what a static scheme quantises in `model`; `keep` are glob patterns of nodes that stay float."""
    reasons: dict[str, str] = {}
    compute = {node for node in model.graph if _takes_int8(node, keep, reasons)}
    on_grid = {_settled_output(node) for node in compute if node.op_type in _CONVOLUTIONS}
    carriers = _grow_carriers(model, on_grid, keep)
    _prune_idle_carriers(model, carriers, compute, on_grid)
    quantized = compute | carriers | {node for node in model.graph if _is_absorbed(node, compute | carriers)}
    grids = _values_on_grids(model, compute, carriers)
    same_grid = {
        _name(node.outputs[0]): _name(node.inputs[0])
        for node in model.graph
        if node in carriers and node.op_type in SAME_GRID_CARRIERS
    }
    return Regions(frozenset(node.name or "" for node in quantized), grids, same_grid, reasons)


def _name(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


def _takes_int8(node: ir.Node, keep: Sequence[str], reasons: dict[str, str]) -> bool:
    if node.domain not in {"", "ai.onnx"} or node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return False
    if not is_float(node.inputs[0]) and node.inputs[0] is not None and node.inputs[0].dtype is not None:
        return False  # integer arithmetic of the model's own
    reason = KEPT if matches(node.name or "", keep) else _obstacle(node)
    if reason:
        reasons[node.name or ""] = reason
    return not reason


def _obstacle(node: ir.Node) -> str:
    """Return why onnxruntime has no int8 kernel for this compute operator as it stands ("" if it has)."""
    data, weight = node.inputs[0], node.inputs[1]
    if is_constant(data):
        return "its first operand is the constant"
    match node.op_type:
        case "ConvTranspose":
            return "onnxruntime has no int8 ConvTranspose"
        case "Conv" if not is_constant(weight):
            return "its weight is computed at run time"
        case "Conv" if (
            len(node.inputs) > 2 and node.inputs[2] is not None and not is_constant(node.inputs[2])
        ):
            return "its bias is computed at run time"
        case "Gemm" if constant_matrix(node) is None:
            return "its weight is computed at run time"
        case "Gemm" if _scaled(node):
            return "Gemm with alpha, beta or transA has no int8 form"
        case "Gemm" if (
            len(node.inputs) > 2 and node.inputs[2] is not None and not is_constant(node.inputs[2])
        ):
            return "its bias is computed at run time"
        case "MatMul" if is_constant(weight) and constant_matrix(node) is None:
            return "its constant operand is not a matrix"
    return ""


def _scaled(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        attributes.get_float("alpha", 1.0) != 1.0
        or attributes.get_float("beta", 1.0) != 1.0
        or attributes.get_int("transA", 0) != 0
    )


def _settled_output(node: ir.Node) -> ir.Value:
    """Return the value that carries an int8 operator's result: past a Relu or Clip that it absorbs."""
    follower = _absorbed_follower(node)
    return follower.outputs[0] if follower is not None else node.outputs[0]


def _absorbed_follower(node: ir.Node) -> ir.Node | None:
    if node.op_type in SAME_GRID_CARRIERS:
        return None  # its output is on its input's grid, which a Relu would cut
    output = node.outputs[0]
    readers = consumers(output)
    if len(readers) != 1 or output.is_graph_output() or readers[0].op_type not in FUSED_ACTIVATIONS:
        return None
    follower = readers[0]
    if follower.op_type == "Clip" and not all(
        is_constant(bound) for bound in follower.inputs[1:] if bound is not None
    ):
        return None
    return follower


def _is_absorbed(node: ir.Node, int8: set[ir.Node]) -> bool:
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return producer is not None and producer in int8 and _absorbed_follower(producer) is node


def _grow_carriers(model: ir.Model, on_grid: set[ir.Value], keep: Sequence[str]) -> set[ir.Node]:
    """Extend int8 forward from convolutions through carriers; `on_grid` grows with them."""
    carriers: set[ir.Node] = set()
    for node in model.graph:  # in topological order
        if node.op_type not in SAME_GRID_CARRIERS | OWN_GRID_CARRIERS or matches(node.name or "", keep):
            continue
        data = [value for value in _float_inputs(node) if not is_constant(value)]
        if not data or not _may_join(node, data, on_grid):
            continue
        carriers.add(node)
        on_grid.add(_settled_output(node))
    return carriers


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and is_float(value)]


def _may_join(node: ir.Node, data: Sequence[ir.Value], on_grid: set[ir.Value]) -> bool:
    if node.op_type == "AveragePool" and node.attributes.get_int("ceil_mode", 0) == 1:
        return (
            False  # onnxruntime's int8 kernel divides by the whole window, also where it hangs over the edge
        )
    if node.op_type == "Mul":
        # A squeeze-excite gate comes out of a float activation: one operand on a grid is enough.
        return any(value in on_grid for value in data) and len(_float_inputs(node)) == len(data)
    if node.op_type in {"Add", "Concat"} and len(_float_inputs(node)) != len(data):
        return False  # a constant operand: onnxruntime has no kernel that quantises it well
    return all(value in on_grid for value in data)


def _prune_idle_carriers(
    model: ir.Model, carriers: set[ir.Node], compute: set[ir.Node], on_grid: set[ir.Value]
) -> None:
    """Drop carriers whose result no int8 operator reads: they would only lose precision."""
    for node in reversed(list(model.graph)):
        if node in carriers:
            settled = _settled_output(node)
            if not any(reader in compute or reader in carriers for reader in consumers(settled)):
                carriers.discard(node)
                on_grid.discard(settled)


def _values_on_grids(model: ir.Model, compute: set[ir.Node], carriers: set[ir.Node]) -> tuple[str, ...]:
    """Name, in graph order, every activation that is read or written as integers."""
    values: dict[str, None] = {}
    for node in model.graph:
        if node in compute or node in carriers:
            data = _operands(node) if node in compute else node.inputs
            values.update(
                dict.fromkeys(_name(v) for v in data if v is not None and is_float(v) and not is_constant(v))
            )
        if node in carriers or (node in compute and node.op_type in _CONVOLUTIONS):
            values[_name(_settled_output(node))] = None
    return tuple(values)


def _operands(node: ir.Node) -> Sequence[ir.Value | None]:
    """Return the inputs of a compute operator that are activations: one, or two for MatMul of activations."""
    if node.op_type == "MatMul" and constant_matrix(node) is None:
        return node.inputs[:2]
    return node.inputs[:1]


def activation_values(model: ir.Model, keep: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the values whose ranges a static scheme needs."""
    regions = decide_regions(model, tuple(keep))
    return tuple(name for name in regions.grids if name not in regions.same_grid)


def observable(model: ir.Model, keep: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of all activations whose range some choice of float layers could ask for."""
    return tuple(dict.fromkeys([*decide_regions(model, ()).grids, *decide_regions(model, keep).grids]))

"""Questions one can ask an ONNX graph: constants, consumers, multiply-accumulates, bytes.

Stands on onnx-ir; never changes a graph. Node names are unique in a tidy graph, and are the keys used here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
import onnx_ir as ir

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer, or `None` if `value` is absent or computed."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer (without reading its bytes)."""
    return value is not None and value.const_value is not None and value.producer() is None


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` carries a floating-point tensor; unknown types count as float if nothing else is known."""
    return value is not None and value.dtype in FLOAT_TYPES


def consumers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read `value`, each once, in graph order."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def sizes_of(value: ir.Value | None, axes: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return the shape of `value` with named axes sized by `axes`; `None` if some axis stays unknown."""
    if value is None or value.shape is None:
        return None
    sizes: list[int] = []
    for axis in value.shape:
        size = axis if isinstance(axis, int) else axes.get(str(axis.value))
        if size is None:
            return None
        sizes.append(size)
    return tuple(sizes)


def node_macs(model: ir.Model, axes: Mapping[str, int]) -> dict[str, int]:
    """Return multiply-accumulates of one inference for each node that has any, by node name.

    Counts Conv, ConvTranspose, MatMul and Gemm (biases are not counted), with named axes sized by `axes`;
    a node whose shapes cannot be known counts 0.
    """
    return {node.name or "": macs for node in model.graph if (macs := _macs(node, axes)) is not None}


def _macs(node: ir.Node, axes: Mapping[str, int]) -> int | None:
    if node.op_type not in COMPUTE_OPS or node.domain not in {"", "ai.onnx"}:
        return None
    first, second = sizes_of(node.inputs[0], axes), sizes_of(node.inputs[1], axes)
    output = sizes_of(node.outputs[0], axes)
    if first is None or second is None or output is None:
        return 0
    match node.op_type:
        case "Conv":  # weight [out, in/groups, *kernel]
            return prod(output) * prod(second[1:])
        case "ConvTranspose":  # weight [in, out/groups, *kernel]
            return prod(first) * prod(second[1:])
        case "Gemm":
            depth = first[0] if node.attributes.get_int("transA", 0) else first[1]
            return prod(output) * depth
        case _:
            return prod(output) * first[-1]


def constant_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, shared ones once."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def parameter_count(model: ir.Model) -> int:
    """Return the number of elements of all floating-point initializers, shared ones once."""
    return sum(
        value.const_value.size
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype in FLOAT_TYPES
    )


def floating_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield, in graph order, the nodes that compute on floats: those whose output is a float tensor.

    Nodes that only move or name data (Reshape, Transpose, Identity, …) are left out: they have no arithmetic
    to quantise.
    """
    for node in model.graph:
        if node.op_type not in _DATA_MOVERS and any(is_float(output) for output in node.outputs):
            yield node


_DATA_MOVERS = frozenset(
    {
        "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Shape",
        "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "DequantizeLinear", "QuantizeLinear",
    }
)  # fmt: skip


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a node called `name` (`module.path/Operator`) is meant by one of the glob `patterns`.

    `head`, `head.*`, `head/*` and `*/Gemm` all mean what a reader expects: a pattern is tried on the whole
    name, on the module path alone, and on the name with `/` read as `.`.
    """
    forms = (name, name.partition("/")[0], name.replace("/", "."))
    return any(fnmatch.fnmatchcase(form, pattern) for pattern in patterns for form in forms)

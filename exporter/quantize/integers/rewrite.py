"""Edits of one graph while it is being quantised: unique names, new constants, replaced operators, the tally.

Also answers what both weight quantisers ask of a MatMul or Gemm: which constant matrix does it read, and what
speaks against quantising it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.errors import InternalError
from exporter.model.graph import constant_of, is_constant, is_float, matches
from exporter.quantize.integers.outcome import Outcome

KEPT = "kept in float by the recipe"
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True, slots=True)
class Matrix:
    """The constant right operand of a MatMul or Gemm.

    `source` is the initializer that holds it, `[N, K]` if `by_output` (a row per output channel, as in
    `torch.nn.Linear` and in embedding tables), else `[K, N]`.
    """

    source: ir.Value
    by_output: bool

    def rows(self) -> NDArray[np.float32]:
        """Return the matrix as `[N, K]`, one row per output channel."""
        array = array_of(self.source)
        return array if self.by_output else array.T


class Rewrite:
    """One graph in the middle of being quantised, edited in place."""

    def __init__(self, model: ir.Model, keep: Sequence[str]) -> None:
        self.model = model
        self.graph = model.graph
        self.quantized: set[str] = set()
        self.reasons: dict[str, str] = {}
        self._keep = tuple(keep)
        self._names = {value.name for value in [*self.graph.inputs, *self.graph.initializers.values()]}
        self._names |= {output.name for node in self.graph.all_nodes() for output in node.outputs}

    def is_kept(self, node: ir.Node) -> bool:
        """Whether the recipe wants `node` to stay float."""
        return matches(node.name or "", self._keep)

    def constant(self, name: str, array: NDArray[Any], dtype: ir.DataType | None = None) -> ir.Value:
        """Return a new initializer of `array` called `name` (or the like, if the name is taken)."""
        unique = self._unique(name)
        tensor = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=unique)
        value = ir.Value(
            name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def insert(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: int | float | str | Sequence[int],
    ) -> tuple[ir.Value, ...]:
        """Insert an operator called `name` before `before` and return its outputs, named after it."""
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = self._unique(name if index == 0 else f"{name}:{index}")
        self.graph.insert_before(before, node)
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        return tuple(node.outputs)

    def substitute(self, node: ir.Node, value: ir.Value) -> None:
        """Let `value` stand for the result of `node`, which leaves the graph and counts as quantised."""
        old = node.outputs[0]
        value.shape, value.type = old.shape, old.type
        name, old.name = old.name, self._unique(f"{old.name}/replaced")
        value.name = name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        self.quantized.add(node.name or "")

    def leave(self, node: ir.Node, reason: str) -> None:
        """Note why `node` stays float."""
        self.reasons[node.name or ""] = reason

    def outcome(self) -> Outcome:
        """Drop what nothing reads any more and return the tally."""
        for node in reversed(list(self.graph)):
            if node.op_type in {"Transpose", "Identity"} and not any(
                output.uses() or output.is_graph_output() for output in node.outputs
            ):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]
        return Outcome(self.model, frozenset(self.quantized), dict(self.reasons))

    def _unique(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._names:
            unique, number = f"{name}_{number}", number + 1
        self._names.add(unique)
        return unique


def array_of(value: ir.Value | None) -> NDArray[Any]:
    """Return the array of a value that was found to be constant. Raises `InternalError` if it is not."""
    array = constant_of(value)
    if array is None:
        name = value.name if value is not None else "an absent input"
        raise InternalError(f"{name} was taken for a constant", fix="report this model as a bug")
    return array


def is_matrix_product(node: ir.Node) -> bool:
    """Whether `node` is a MatMul or Gemm on floats (integer arithmetic of the model's own is not)."""
    if node.domain not in {"", "ai.onnx"} or node.op_type not in {"MatMul", "Gemm"}:
        return False
    return all(value is None or value.dtype is None or is_float(value) for value in node.inputs)


def constant_matrix(node: ir.Node) -> Matrix | None:
    """Return the constant matrix that a MatMul or Gemm multiplies by, seen through Transpose and Identity."""
    value = node.inputs[1]
    by_output = node.op_type == "Gemm" and node.attributes.get_int("transB", default=0) == 1
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "Transpose":
            order = producer.attributes.get_ints("perm", None)
            if order is not None and tuple(order) not in {(1, 0), (0, 1)}:
                return None
            by_output ^= order is None or tuple(order) == (1, 0)
        elif producer.op_type != "Identity":
            return None
        value = producer.inputs[0]
    if value is None or not is_constant(value) or value.is_graph_input():
        return None
    if value.shape is None or len(value.shape) != 2:
        return None
    return Matrix(value, by_output)


def output_channel_axis(node: ir.Node) -> int:
    """Return which axis of the weight of a Conv, Gemm or MatMul counts its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1


def weight_of(node: ir.Node) -> Matrix:
    """Return the constant matrix of a node that `obstacle` let pass; `InternalError` if it has none."""
    matrix = constant_matrix(node)
    if matrix is None:
        raise InternalError(f"{node.name} has no constant matrix", fix="report this model as a bug")
    return matrix


def obstacle(rewrite: Rewrite, node: ir.Node) -> str:
    """Return why the weights of a MatMul or Gemm cannot be quantised ("" if they can)."""
    if rewrite.is_kept(node):
        return KEPT
    data, weight = node.inputs[0], node.inputs[1]
    if is_constant(data):
        return "its first operand is the constant"
    if data is not None and data.shape is not None and len(data.shape) < 2:
        return "its activation is a vector"
    matrix = constant_matrix(node)
    if matrix is None:
        if is_constant(weight):
            return "its constant operand is not a matrix"
        return (
            "multiplies two activations" if node.op_type == "MatMul" else "its weight is computed at run time"
        )
    if matrix.source.dtype != ir.DataType.FLOAT:
        return f"its weight is {str(matrix.source.dtype).lower()}, not float32"
    return ""


def is_transposed(node: ir.Node) -> bool:
    """Whether `node` is a Gemm that transposes its activation."""
    return node.op_type == "Gemm" and node.attributes.get_int("transA", default=0) != 0


def left_operand(rewrite: Rewrite, node: ir.Node) -> ir.Value:
    """Return the activation of a MatMul or Gemm, transposed where transA asks for it."""
    data = node.inputs[0]
    if data is None:
        raise InternalError(f"{node.name} has no first operand", fix="report this model as a bug")
    if is_transposed(node):
        (data,) = rewrite.insert(node, "Transpose", [data], f"{node.name}/transA", perm=[1, 0])
    return data


def finish_product(rewrite: Rewrite, node: ir.Node, product: ir.Value) -> None:
    """Let alpha · `product` + beta · C stand for `node`, whose quantised A · B is `product`."""
    if node.op_type == "Gemm":
        alpha, beta = (
            node.attributes.get_float("alpha", default=1.0),
            node.attributes.get_float("beta", default=1.0),
        )
        if alpha != 1.0:
            product = _scaled(rewrite, node, product, alpha, "alpha")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and beta != 0.0:
            bias = bias if beta == 1.0 else _scaled(rewrite, node, bias, beta, "beta")
            (product,) = rewrite.insert(node, "Add", [product, bias], f"{node.name}/bias")
    rewrite.substitute(node, product)


def _scaled(rewrite: Rewrite, node: ir.Node, value: ir.Value, factor: float, name: str) -> ir.Value:
    constant = rewrite.constant(f"{node.name}/{name}", np.asarray(factor, np.float32))
    return rewrite.insert(node, "Mul", [value, constant], f"{node.name}/{name}_scaled")[0]

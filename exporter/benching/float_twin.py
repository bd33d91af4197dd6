"""The float twin of an int8 `.onnx` file: the same graph without quantisation, to be timed against it.

Its answers do not matter and are not recorded; its weights are the int8 ones, decoded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.model.onnx_write import save_onnx


def write_float_twin(source: Path, destination: Path) -> bool:
    """Write the twin of `source` to `destination`; return whether there is one.

    There is one if every quantised tensor is coded and decoded by `QuantizeLinear` and `DequantizeLinear`.
    """
    model = ir.load(source)
    decoders = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    if not decoders or any(
        "Integer" in node.op_type or node.domain == "com.microsoft" for node in model.graph
    ):
        return False
    for node in decoders:
        coded = node.inputs[0]
        coder = None if coded is None else coded.producer()
        is_pair = coder is not None and coder.op_type == "QuantizeLinear"
        plain = coder.inputs[0] if coder is not None and is_pair else _decoded(model, node)
        if plain is None:
            return False
        ir.convenience.replace_all_uses_with(node.outputs[0], plain, replace_graph_outputs=True)
    _drop_unused(model)
    save_onnx(model, destination)
    return True


def _decoded(model: ir.Model, node: ir.Node) -> ir.Value | None:
    """Return a new float constant for what `node` decodes, or None if it is no constant or in blocks."""
    constants = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
    if constants[0] is None or constants[1] is None or _integer(node, "block_size", 0):
        return None
    codes = constants[0].numpy().astype(np.float32)
    axis = _integer(node, "axis", 1)
    scale = _along(constants[1].numpy().astype(np.float32), codes, axis)
    zero = constants[2] if len(constants) > 2 else None
    offset = np.float32(0) if zero is None else _along(zero.numpy().astype(np.float32), codes, axis)
    value = ir.Value(name=f"{node.name}/float", const_value=ir.tensor((codes - offset) * scale))
    model.graph.register_initializer(value)
    return value


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _along(values: NDArray[np.float32], codes: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    if values.ndim == 0 or values.size == 1:
        return values.reshape(())
    shape = [1] * codes.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _drop_unused(model: ir.Model) -> None:
    for node in reversed(list(model.graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]

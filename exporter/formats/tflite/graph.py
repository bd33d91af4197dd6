"""The `.tflite` flatbuffer as plain objects: reading, names, operators, shapes, and canonical bytes.

Follows the LiteRT schema (`ai_edge_litert.schema_py_generated`). Imported in child processes only, since the
schema module is large. Knows nothing of torch, calibration or quantisation policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from exporter.arrays import Array
from exporter.errors import UnsupportedError

OPERATOR_NAMES: dict[int, str] = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
TYPE_NAMES: dict[int, str] = {
    code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)
}
NUMPY_DTYPES: dict[str, str] = {
    name: name.lower()
    for name in ("FLOAT16", "FLOAT32", "FLOAT64", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL")
}

_MODULE_STEP = re.compile(r"torch\.export\.unflatten\.\w*Module_([\w@]+)")
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the main graph: its kind, a readable unique name, and its tensors' indices."""

    index: int
    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Torch module paths this operator was made from (several where the converter fused)."""
        return tuple(self.name.rpartition("/")[0].split("+")) if "/" in self.name else ()


def read_model(content: bytes) -> Any:
    """Return the object form (`ModelT`) of a `.tflite`; its first subgraph is the main graph."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def canonical_bytes(model: Any) -> bytes:
    """Return the flatbuffer of `model`: equal objects give equal bytes, whatever wrote them first."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def operators(model: Any) -> Iterator[Operator]:
    """Yield the operators of the main graph in execution order."""
    graph = model.subgraphs[0]
    for index, operator in enumerate(graph.operators):
        name = (
            _text(graph.tensors[operator.outputs[0]].name) if len(operator.outputs) else f"operator {index}"
        )
        yield Operator(
            index,
            operator_kind(model, operator),
            name,
            tuple(int(tensor) for tensor in operator.inputs),
            tuple(int(tensor) for tensor in operator.outputs),
            operator.builtinOptions,
        )


def operator_kind(model: Any, operator: Any) -> str:
    """Return the builtin's name, for example `CONV_2D`; a custom operator's own name otherwise."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Old writers fill only the deprecated byte, new ones both (schema version 3a).
    kind = OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return _text(code.customCode) if kind == "CUSTOM" else kind


def tensor_name(model: Any, index: int) -> str:
    """Return the name of a main-graph tensor."""
    return _text(model.subgraphs[0].tensors[index].name)


def tensor_type(model: Any, index: int) -> str:
    """Return the schema's type name of a main-graph tensor, for example `INT8`."""
    return TYPE_NAMES[model.subgraphs[0].tensors[index].type]


def shape_of(model: Any, index: int) -> tuple[int, ...]:
    """Return the shape of a main-graph tensor."""
    shape = model.subgraphs[0].tensors[index].shape
    return () if shape is None else tuple(int(axis) for axis in shape)


def is_constant(model: Any, index: int) -> bool:
    """Whether a tensor's values are stored in the file."""
    buffer = model.buffers[model.subgraphs[0].tensors[index].buffer]
    return (buffer.data is not None and len(buffer.data) > 0) or bool(buffer.size)


def constant(model: Any, index: int) -> Array:
    """Return the values of a stored tensor of a byte-wide or wider type, in its own dtype and shape."""
    tensor = model.subgraphs[0].tensors[index]
    dtype = NUMPY_DTYPES[TYPE_NAMES[tensor.type]]
    data = model.buffers[tensor.buffer].data
    return np.frombuffer(bytes(data), dtype=dtype).reshape(shape_of(model, index))


def set_signature(model: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Rename the signature's entries (and the input tensors) from converter keys to the model's names.

    The signature's entries and the graph's inputs and outputs follow the order of the mappings.
    Raises `UnsupportedError` when the converter dropped one (it depends on nothing).
    """
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for what, entries, names in (
        ("input", signature.inputs, inputs),
        ("output", signature.outputs, outputs),
    ):
        by_key = {_text(entry.name): entry for entry in entries}
        for key, name in names.items():
            if key not in by_key:
                raise UnsupportedError(
                    f"{what} {name!r} has no place in the .tflite: the converter dropped it",
                    fix=f"remove the unused {what} from the model and the recipe",
                )
            by_key[key].name = name.encode()
            if what == "input":
                graph.tensors[by_key[key].tensorIndex].name = name.encode()
        entries[:] = [by_key[key] for key in names]
    graph.inputs = [entry.tensorIndex for entry in signature.inputs]
    graph.outputs = [entry.tensorIndex for entry in signature.outputs]


def name_tensors(model: Any) -> None:
    """Name every main-graph tensor after the torch module and operator that make it.

    Operator results are `module.path/operator` (`a.conv+a.bn/conv_2d` where modules were fused), constants
    `result:weight`, `result:bias` or `result:constant_i` of their first user; `_2`, `_3` … make names unique.
    Inputs keep their names. The converter names results of the whole graph after the signature, so the
    module of the operator that makes one is taken from its constants.
    """
    graph = model.subgraphs[0]
    named = {int(index) for index in graph.inputs}
    taken = {_text(graph.tensors[index].name) for index in named}
    for operator in graph.operators:
        kind = operator_kind(model, operator).lower()
        constants = [
            i for i in map(int, operator.inputs) if i >= 0 and i not in named and is_constant(model, i)
        ]
        borrowed = [path for i in constants for path in _module_paths(_text(graph.tensors[i].name))]
        for index in (int(output) for output in operator.outputs if output not in named):
            paths = _owners(_module_paths(_text(graph.tensors[index].name)), tuple(dict.fromkeys(borrowed)))
            _rename(graph.tensors[index], "/".join(filter(None, ("+".join(paths), kind))), taken)
            named.add(index)
        owner = _text(graph.tensors[operator.outputs[0]].name) if len(operator.outputs) else kind
        for position, index in enumerate(map(int, operator.inputs)):
            if index in constants and index not in named:
                _rename(graph.tensors[index], f"{owner}:{_role(kind.upper(), position)}", taken)
                named.add(index)


def _owners(of_result: tuple[str, ...], of_constants: tuple[str, ...]) -> tuple[str, ...]:
    """Return the module paths that a result and its constants share, those of either where they share none.

    The converter merges equal steps of sibling layers, and the result then carries the siblings' paths too.
    """
    shared = tuple(path for path in of_result if path in of_constants)
    paths = shared or of_result or of_constants
    return tuple(path for path in paths if not any(other.startswith(f"{path}.") for other in paths))


def _role(kind: str, position: int) -> str:
    if kind in _WEIGHTED and position in {1, 2} and kind != "TRANSPOSE_CONV":
        return "weight" if position == 1 else "bias"
    return f"constant_{position}"


def _rename(tensor: Any, wanted: str, taken: set[str]) -> None:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    tensor.name = name.encode()


def _module_paths(name: str) -> tuple[str, ...]:
    """Return the distinct module paths in a converter's tensor name, outermost modules first."""
    paths = [
        ".".join(step.partition("@")[0] for step in _MODULE_STEP.findall(part)[1:])
        for part in name.split(";")
    ]
    return tuple(dict.fromkeys(path for path in paths if path))


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""

"""Read an ONNX file that somebody else made, without following it out of its folder.

Names, paths and offsets inside a model are attacker-controlled; nothing here trusts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from exporter.artifacts import TensorSpec
from exporter.errors import GateError, InputError, UnsafeError, UnsupportedError
from exporter.files import require_file
from exporter.sniff import describe_content

OLDEST_OPSET, NEWEST_OPSET = 13, 23
_KNOWN_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_QUANTIZED_OPS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger",
    "ConvInteger", "MatMulNBits", "QGemm", "GatherBlockQuantized",
}  # fmt: skip


def read_onnx(path: Path, *, load_weights: bool = True) -> onnx.ModelProto:
    """Return the model in `path` with its external data loaded, after checking it can be trusted as data.

    Raises `InputError` (10) if it is missing, truncated or invalid, `UnsafeError` (11) if external data
    leaves the model's folder, `UnsupportedError` (12) for custom operators or an opset outside 13..23.
    """
    require_file(path, what="the model")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(
            f"{path} is not an ONNX model or is truncated ({path.stat().st_size} bytes): "
            f"it looks like {describe_content(path)}",
            fix="export or copy it again",
        ) from error
    if not model.graph.node:
        raise InputError(f"{path} holds a graph without nodes", fix="export the model again")
    _check_operators(path, model)
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            _check_external(path, tensor)
            if load_weights:
                load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    _check_structure(path, model)
    return model


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedError(
            f"{path} uses opset {opset}; this tool takes {OLDEST_OPSET} to {NEWEST_OPSET}",
            fix="export it with opset_version=18, or convert it with onnx.version_converter",
        )
    defined = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in defined:
            raise UnsupportedError(
                f"{path}: operator {node.domain}::{node.op_type} (node {node.name or '?'}) is custom, "
                "and no mobile runtime has it",
                fix="export the model without custom operators",
            )


def quantized_operator(model: onnx.ModelProto) -> str | None:
    """Return the first operator that shows that the model is quantised already, or `None`."""
    return next((node.op_type for node in model.graph.node if node.op_type in _QUANTIZED_OPS), None)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _check_external(model_path: Path, tensor: onnx.TensorProto) -> None:
    info = ExternalDataInfo(tensor)
    where = f"{model_path}: tensor {tensor.name!r} keeps its data in {info.location!r}"
    location = Path(info.location)
    if location.is_absolute() or ".." in location.parts or "\\" in info.location or not info.location:
        raise UnsafeError(
            f"{where}, outside the model's folder", fix="save the model with its data beside it"
        )
    path = model_path.parent / location
    walked = model_path.parent
    for part in location.parts:
        walked /= part
        if walked.is_symlink():
            raise UnsafeError(f"{where}, which is a symbolic link", fix="replace the link by the file")
    require_file(path, what=f"external data of tensor {tensor.name!r},")
    if path.stat().st_nlink > 1:
        raise UnsafeError(
            f"{where}, which has other hard links", fix="copy the file, so that it has one name"
        )
    offset, length, size = info.offset or 0, info.length, path.stat().st_size
    if offset < 0 or (length is not None and (length < 0 or offset + length > size)) or offset > size:
        raise InputError(
            f"{where} at offset {offset}, length {length}, but that file has {size} bytes",
            fix="export or copy the model again, with its data file",
        )


def _check_structure(path: Path, model: onnx.ModelProto) -> None:
    try:
        if model.ByteSize() < 2**31 - 1:
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"{path} is not a valid ONNX model: {str(error).strip().splitlines()[0][:200]}",
            fix="export it again",
        ) from error
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not uses_external_data(tensor):
            array = onnx.numpy_helper.to_array(tensor)
            bad = ~(np.abs(array) <= 1e15) & ~_is_mask_fill(array)
            if bad.any():
                index = [int(axis) for axis in np.argwhere(bad)[0]]
                raise GateError(
                    f"weight {tensor.name}{index} is {array[tuple(index)]}",
                    fix="train or save the model again",
                )


def _is_mask_fill(array: np.ndarray) -> np.ndarray:
    # Attention masks are filled with -inf or the lowest float on purpose; those are constants, not weights.
    filled: np.ndarray = (array == -np.inf) | (array <= -1e30)
    return filled


def tensor_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the specs of the model's inputs (without initializers) and outputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(f"{value.name} is not a tensor", fix="export the model with tensors as inputs")
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    axes: list[int | str] = []
    for position, axis in enumerate(tensor.shape.dim):
        named = axis.dim_param or f"{_identifier(value.name)}_axis{position}"
        axes.append(axis.dim_value if axis.HasField("dim_value") else named)
    return TensorSpec(value.name, dtype, tuple(axes))


def _identifier(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)

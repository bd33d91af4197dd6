"""Read an ONNX file that somebody else made, without following it out of its folder.

Names, paths and offsets inside a model are attacker-controlled; nothing here trusts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from exporter.artifacts import TensorSpec
from exporter.bundle.contract import CONTRACT_KEY, LICENSE_KEY, MODEL_KEY
from exporter.errors import InputError, UnsafeError, UnsupportedError, first_line
from exporter.model.sniff import describe_content
from exporter.model.weights import require_sane_weight
from exporter.system.files import require_file

OLDEST_OPSET, NEWEST_OPSET = 13, 23
_FLOAT_TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
_WEIGHTED_OPS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"}
_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
}
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
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            _check_external(path, tensor)
            if load_weights:
                load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    _check_structure(path, model)
    return model


def carried_metadata(path: Path) -> dict[str, str]:
    """Return what an ONNX file of ours says of its model and of how its input is prepared, by key; nothing of others."""
    proto = onnx.load(path, load_external_data=False)
    return {
        item.key: item.value
        for item in proto.metadata_props
        if item.key in {CONTRACT_KEY, LICENSE_KEY, MODEL_KEY}
    }


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    opset = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedError(
            f"{path} uses opset {opset}; this tool takes {OLDEST_OPSET} to {NEWEST_OPSET}",
            fix="export it with opset_version=18, or convert it with onnx.version_converter",
        )
    defined = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in defined:
            raise UnsupportedError(
                f"{path}: operator {node.domain}::{node.op_type} (node {node.name or '?'}) is custom, "
                "and no mobile runtime has it",
                fix="export the model without custom operators",
            )


def quantized_operator(model: onnx.ModelProto) -> str | None:
    """Return the first operator that shows that the model is quantised already, or `None`."""
    return next((node.op_type for node in _nodes(model) if node.op_type in _QUANTIZED_OPS), None)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and every graph inside its nodes (branches and loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the model, in subgraphs and functions too."""
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        for node in function.node:
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    for graph in _graphs(inner):
                        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that the model holds, wherever one can be kept."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)


def _check_external(model_path: Path, tensor: onnx.TensorProto) -> None:
    try:
        info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise InputError(
            f"{model_path}: tensor {tensor.name!r} does not say where its data lies: {error}",
            fix="export or copy the model again",
        ) from error
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
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise InputError(
            f"{path} is not a valid ONNX model: {first_line(error)}",
            fix="export it again",
        ) from error
    weights = {name for node in _nodes(model) if node.op_type in _WEIGHTED_OPS for name in node.input if name}
    for tensor in _tensors(model):
        if tensor.data_type in _FLOAT_TYPES and not uses_external_data(tensor):
            try:
                array = onnx.numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{path}: tensor {tensor.name!r} does not hold what its shape says: {error}",
                    fix="export or copy the model again",
                ) from error
            require_sane_weight(tensor.name or "(a constant)", array, may_mask=tensor.name not in weights)


def tensor_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the specs of the model's inputs (without initializers) and outputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(f"{value.name} is not a tensor", fix="export the model with tensors as inputs")
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        kinds = {number: name for name, number in onnx.TensorProto.DataType.items()}
        raise UnsupportedError(
            f"{value.name} is a tensor of {kinds.get(tensor.elem_type, tensor.elem_type)}",
            fix=f"export the model with {', '.join(sorted(_DTYPES.values()))}",
        )
    axes: list[int | str] = []
    for position, axis in enumerate(tensor.shape.dim):
        named = axis.dim_param or f"{_identifier(value.name)}_axis{position}"
        # Some exporters write 0 or -1 for "any size".
        axes.append(axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else named)
    return TensorSpec(value.name, _DTYPES[tensor.elem_type], tuple(axes))


def _identifier(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)

"""What an `.ort` or `.tflite` file says of itself, read from its bytes: tensors, and the contract that it carries.

Flatbuffers are read table by table and nothing is loaded into a runtime, so that a damaged or hostile file can at worst
be refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.bundle.contract import CONTRACT_KEY, MODEL_KEY, contract_document, parse_contract
from exporter.errors import InputError, UnsupportedError
from exporter.model.sniff import describe_content
from exporter.system.files import require_file

_IDENTIFIERS = {".tflite": b"TFL3", ".ort": b"ORTM"}
_ORT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One input or output; `quantization` is scale and zero point where its integers stand for real numbers, or empty."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file says of itself: `model` is name and version, `contract` the object of `preprocess.json`, if it has one."""

    format: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    model: str | None
    contract: Mapping[str, Any] | None


def carried_contract(metadata: Mapping[str, str], where: str) -> tuple[str | None, dict[str, Any] | None]:
    """Return the model and the contract document among a file's texts, each `None` if it has none.

    Raises what `exporter.bundle.contract.parse_contract` raises.
    """
    if CONTRACT_KEY not in metadata:
        return metadata.get(MODEL_KEY), None
    carried = parse_contract(metadata[CONTRACT_KEY], f"{where}: {CONTRACT_KEY}")
    return metadata.get(MODEL_KEY), contract_document(carried.contract, carried.labels)


def inspect_flatbuffer(path: Path) -> FileFacts:
    """Return the facts of the `.ort` or `.tflite` file in `path`.

    Raises `InputError` if it is missing, damaged or something else, `UnsupportedError` without the library that knows
    the format, `IntegrityError` if it carries what is no contract.
    """
    require_file(path, what="the model")
    content = path.read_bytes()
    if content[4:8] != _IDENTIFIERS[path.suffix.lower()]:
        raise InputError(
            f"{path} is no {path.suffix} file: it looks like {describe_content(path)}",
            fix="copy or build it again",
        )
    read = _read_tflite if path.suffix.lower() == ".tflite" else _read_ort
    try:
        inputs, outputs, metadata = read(content)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged: its tables cannot be read", fix="copy or build it again"
        ) from error
    model, contract = carried_contract(metadata, path.name)
    return FileFacts(path.suffix[1:].lower(), inputs, outputs, model, contract)


Read = tuple[tuple[TensorFacts, ...], tuple[TensorFacts, ...], dict[str, str]]


def _read_tflite(content: bytes) -> Read:
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise UnsupportedError(
            "reading a .tflite needs ai-edge-litert, which is not installed",
            fix="pip install 'edge-exporter[litert]'",
        ) from error
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    dtypes = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    names: dict[int, str] = {}
    if model.SignatureDefsLength():
        signature = model.SignatureDefs(0)
        for entry in (
            *map(signature.Inputs, range(signature.InputsLength())),
            *map(signature.Outputs, range(signature.OutputsLength())),
        ):
            names[entry.TensorIndex()] = entry.Name().decode()

    def tensor(index: int) -> TensorFacts:
        found = graph.Tensors(index)
        shape = tuple(int(found.Shape(axis)) for axis in range(found.ShapeLength()))
        name = names.get(index, found.Name().decode())
        return TensorFacts(name, dtypes[found.Type()], shape, _quantization(found.Quantization()))

    metadata = {}
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() in (CONTRACT_KEY.encode(), MODEL_KEY.encode()):
            metadata[entry.Name().decode()] = bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    return (
        tuple(tensor(graph.Inputs(number)) for number in range(graph.InputsLength())),
        tuple(tensor(graph.Outputs(number)) for number in range(graph.OutputsLength())),
        metadata,
    )


def _quantization(parameters: Any) -> str:
    if parameters is None or not parameters.ScaleLength():
        return ""
    return f"scale {parameters.Scale(0):.6g}, zero point {parameters.ZeroPoint(0)}"


def _read_ort(content: bytes) -> Read:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

    model = fbs.InferenceSession.InferenceSession.GetRootAs(content, 0).Model()
    graph = model.Graph()
    arguments = {}
    for number in range(graph.NodeArgsLength()):
        argument = graph.NodeArgs(number)
        arguments[argument.Name()] = argument

    def tensor(name: bytes) -> TensorFacts:
        kind = fbs.TensorTypeAndShape.TensorTypeAndShape()
        value = arguments[name].Type().Value()
        kind.Init(value.Bytes, value.Pos)
        axes = []
        for axis in range(kind.Shape().DimLength() if kind.Shape() else 0):
            dimension = kind.Shape().Dim(axis).Value()
            axes.append(dimension.DimValue() if dimension.DimType() == 1 else dimension.DimParam().decode())
        return TensorFacts(name.decode(), _ORT_TYPES.get(kind.ElemType(), "other"), tuple(axes))

    return (
        tuple(tensor(graph.Inputs(number)) for number in range(graph.InputsLength())),
        tuple(tensor(graph.Outputs(number)) for number in range(graph.OutputsLength())),
        {
            model.MetadataProps(number).Key().decode(): model.MetadataProps(number).Value().decode()
            for number in range(model.MetadataPropsLength())
        },
    )

"""What a `.tflite` says of itself: our contract under its own key, and the format's standard metadata for others.

The standard entry, `TFLITE_METADATA`, is a flatbuffer in a buffer of the file, for MediaPipe's and the Task Library's
readers; files that it names are a zip behind the model. Schema: mediapipe/tasks/metadata/metadata_schema.fbs 1.5.0, of
which the few tables needed are written here, because the libraries that hold it are a hundred times its size.
Its pictures are 0..255 and channels-last RGB or grey: where a contract is not, the description says so.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from exporter.bundle.contract import CONTRACT_KEY, MODEL_KEY, Contract, describe_contract, parse_contract
from exporter.formats.tflite.graph import NUMPY_DTYPES, TYPE_NAMES

STANDARD_KEY = "TFLITE_METADATA"
LABELS_NAME = "labels.txt"

_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"
_COLOR_SPACES = {"RGB": 1, "L": 2}
_IMAGE_PROPERTIES, _NORMALIZATION, _AXIS_LABELS = 2, 1, 2
_AXES = {"NCHW": ("batch", "channel", "height", "width"), "NHWC": ("batch", "height", "width", "channel")}
_EARLIEST = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Number:
    """A number that stands in its table itself; `kind` is what flatbuffers calls its type."""

    kind: str
    value: int


@dataclass(frozen=True, slots=True)
class _Table:
    """A flatbuffer table: what stands in each slot; a number, a text, a table, a tuple of those, or floats."""

    slots: Mapping[int, Any]


def add_metadata(model: Any, metadata: Mapping[str, str], artifact: str) -> None:
    """Add to `model` (`ModelT`, changed) an entry for each text of `metadata`, and the standard one made of them.

    `artifact` spells what the file is. Entries that are there stay; without `metadata` nothing is added.
    """
    entries = {key: text.encode() for key, text in sorted(metadata.items())}
    if CONTRACT_KEY in metadata:
        entries = {STANDARD_KEY: standard_metadata(model, metadata, artifact), **entries}
    for key, content in entries.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(content, np.uint8)
        entry.name, entry.buffer = key.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]


def labels_archive(model: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the flatbuffer `model` with the class names behind it, as the zip where standard metadata looks for files."""
    labels = _lines(_contract(metadata)) if CONTRACT_KEY in metadata else None
    if labels is None:
        return model
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(LABELS_NAME, _EARLIEST)
        entry.create_system, entry.external_attr = 3, 0o100644 << 16
        archive.writestr(entry, labels)
    return buffer.getvalue()


def standard_metadata(model: Any, metadata: Mapping[str, str], artifact: str) -> bytes:
    """Return the `TFLITE_METADATA` flatbuffer of `model` (`ModelT`): names, preparation of its pictures, class names."""
    contract = _contract(metadata)
    name, _, version = metadata.get(MODEL_KEY, "").rpartition(" ")
    graph = model.subgraphs[0]
    names = {
        int(entry.tensorIndex): entry.name.decode()
        for side in (model.signatureDefs[0].inputs, model.signatureDefs[0].outputs)
        for entry in side
    }
    images = [index for index in graph.inputs if _is_picture(graph.tensors[index], contract)]
    answers = [index for index in graph.outputs if _names_classes(graph.tensors[index], contract)]
    subgraph = _Table(
        {
            2: tuple(
                _input(names[int(index)], graph.tensors[index], contract if [index] == images else None)
                for index in graph.inputs
            ),
            3: tuple(
                _output(names[int(index)], graph.tensors[index], is_labelled=index in answers[:1])
                for index in graph.outputs
            ),
        }
    )
    builder = flatbuffers.Builder(1024)
    root = _Table(
        {0: name, 1: f"{artifact}, written by edge-exporter", 2: version, 3: (subgraph,), 7: _PARSER_VERSION}
    )
    builder.Finish(_write(builder, root), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _contract(metadata: Mapping[str, str]) -> Contract:
    return parse_contract(metadata[CONTRACT_KEY], CONTRACT_KEY)


def _lines(contract: Contract) -> str | None:
    """Return the class names one a line, or `None` if there are none, or some that a line cannot hold."""
    if not contract.labels or any(not label or label.splitlines() != [label] for label in contract.labels):
        return None
    return "\n".join(contract.labels)


def _is_picture(tensor: Any, contract: Contract) -> bool:
    return contract.is_image and tuple(map(int, tensor.shape)) == contract.image_shape


def _names_classes(tensor: Any, contract: Contract) -> bool:
    shape = tuple(map(int, tensor.shape))
    return _lines(contract) is not None and len(shape) > 0 and shape[-1] == len(contract.labels)


def _input(name: str, tensor: Any, contract: Contract | None) -> _Table:
    if contract is None:
        return _Table({0: name, 1: _kind_of(tensor)})
    image = contract.contract
    height, width = image["size"]
    scale = float(image["scale"])
    # The format normalises levels of 0..255: (p * scale - mean) / std = (p - mean / scale) / (std / scale).
    mean, std = (np.asarray(image[key], np.float64) / scale for key in ("mean", "std"))
    ends = np.sort(np.stack([(0.0 - mean) / std, (255.0 - mean) / std]), axis=0).astype(np.float32)
    properties = _Table(
        {
            0: _Number("Int8", _COLOR_SPACES.get(image["color"], 0)),
            1: _Table({0: _Number("Uint32", width), 1: _Number("Uint32", height)}),
        }
    )
    normalization = _Table({0: mean.astype(np.float32), 1: std.astype(np.float32)})
    return _Table(
        {
            0: name,
            1: describe_contract(image),
            2: _AXES[image["layout"]],
            3: _Table({0: _Number("Uint8", _IMAGE_PROPERTIES), 1: properties}),
            4: (_Table({0: _Number("Uint8", _NORMALIZATION), 1: normalization}),),
            5: _Table({0: ends[1], 1: ends[0]}),
        }
    )


def _output(name: str, tensor: Any, *, is_labelled: bool) -> _Table:
    if not is_labelled:
        return _Table({0: name, 1: _kind_of(tensor)})
    labels = _Table(
        {0: LABELS_NAME, 1: "the class of each score, one a line", 2: _Number("Int8", _AXIS_LABELS)}
    )
    return _Table({0: name, 1: "one score a class", 6: (labels,)})


def _kind_of(tensor: Any) -> str:
    return f"{NUMPY_DTYPES[TYPE_NAMES[tensor.type]]}[{', '.join(str(int(axis)) for axis in tensor.shape)}]"


def _write(builder: Any, table: _Table) -> int:
    """Write `table` and what it refers to, children first, and return its offset."""
    offsets = {
        slot: _write_child(builder, value)
        for slot, value in table.slots.items()
        if not isinstance(value, _Number)
    }
    builder.StartObject(max(table.slots) + 1)
    for slot, value in table.slots.items():
        if isinstance(value, _Number):
            getattr(builder, f"Prepend{value.kind}Slot")(slot, value.value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
    written: int = builder.EndObject()
    return written


def _write_child(builder: Any, value: Any) -> int:
    offset: int
    match value:
        case str():
            offset = builder.CreateString(value)
        case _Table():
            offset = _write(builder, value)
        case np.ndarray():
            offset = builder.CreateNumpyVector(np.ascontiguousarray(value))
        case _:
            parts = [_write_child(builder, part) for part in value]
            builder.StartVector(4, len(parts), 4)
            for part in reversed(parts):
                builder.PrependUOffsetTRelative(part)
            offset = builder.EndVector()
    return offset

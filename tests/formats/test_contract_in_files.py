"""Every file carries the contract: the same object, found by readers that are not ours, at no cost to the file."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner
from flatbuffers.table import Table  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.preprocess import Preprocess, describe_preprocess
from exporter.artifacts import Artifact, ArtifactSpec, TensorSpec
from exporter.bundle.contract import (
    CONTRACT_KEY,
    MODEL_KEY,
    contract_document,
    describe_contract,
    file_metadata,
)
from exporter.cli import main
from exporter.errors import InputError, IntegrityError
from exporter.formats.base import ProduceRequest
from exporter.formats.producers import produce
from exporter.formats.tflite.graph import read_model
from exporter.formats.tflite.metadata import add_metadata, labels_archive
from exporter.formats.tflite.pack import pack
from exporter.jobs.inspect import inspect_onnx
from exporter.model.carried import inspect_flatbuffer
from exporter.model.onnx_write import save_onnx
from exporter.quantize.integers.encodings import Encodings

CONTRACT = Preprocess(size=(2, 2), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LABELS = ("cat", "naïve bird", "犬")
METADATA = file_metadata("net", "1.2.0-rc.1", CONTRACT.to_dict(), LABELS)
DOCUMENT = json.loads(json.dumps(contract_document(CONTRACT.to_dict(), LABELS)))
ROOT = Path(__file__).resolve().parents[2]
OLD_RUNTIME = os.environ.get("EDGE_TFLITE_RUNTIME_PYTHON", "")

NETWORK = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 3, 2, 2] image) => (float[batch, 3] scores) {
    [flat] f = Flatten (image)
    [head] scores = Gemm <transB = 1> (f, w, b)
}
"""


# --- ONNX and ORT ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    folder = tmp_path_factory.mktemp("contract")
    proto = onnx.parser.parse_model(NETWORK)
    random = np.random.default_rng(0)
    for name, shape in (("w", (3, 12)), ("b", (3,))):
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    save_onnx(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), folder / "float32.onnx")

    made: dict[tuple[str, str], Artifact] = {}

    def run(text: str, home: str, metadata: dict[str, str]) -> Artifact:
        if (text, home) not in made:
            made[text, home] = _produce(text, home, metadata)
        return made[text, home]

    def _produce(text: str, home: str, metadata: dict[str, str]) -> Artifact:
        (folder / home).mkdir(exist_ok=True)
        request = ProduceRequest(
            spec=ArtifactSpec.parse(text),
            model_name="net",
            onnx=folder / "float32.onnx",
            program=None,
            inputs=(TensorSpec("image", "float32", ("batch", 3, 2, 2)),),
            outputs=(TensorSpec("scores", "float32", ("batch", 3)),),
            axes={"batch": 1},
            samples=None,
            rule="minmax",
            encodings=Encodings(),
            destination=folder / home,
            workdir=folder / "work",
            metadata=metadata,
        )
        return produce(request)

    return run


@pytest.mark.parametrize("text", ["onnx:float32", "onnx:weight_only_wi8@fixed", "ort:weight_only_wi8@fixed"])
def test_onnxruntime_finds_the_contract_in_the_file(make: Callable[..., Artifact], text: str) -> None:
    artifact, bare = make(text, "carrying", METADATA), make(text, "bare", {})
    session = onnxruntime.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    carried = session.get_modelmeta().custom_metadata_map
    assert carried == METADATA
    assert json.loads(carried[CONTRACT_KEY]) == DOCUMENT
    image = np.ones((1, 3, 2, 2), np.float32)
    plain = onnxruntime.InferenceSession(str(bare.path), providers=["CPUExecutionProvider"])
    assert not plain.get_modelmeta().custom_metadata_map
    np.testing.assert_array_equal(
        session.run(None, {"image": image})[0], plain.run(None, {"image": image})[0]
    )
    told = sum(len(key.encode()) + len(value.encode()) for key, value in METADATA.items())
    assert told < artifact.size_bytes - bare.size_bytes < told + 80


@pytest.mark.parametrize("text", ["onnx:weight_only_wi8@fixed", "ort:weight_only_wi8@fixed"])
def test_a_file_that_carries_it_is_the_same_bytes_each_time(make: Callable[..., Artifact], text: str) -> None:
    backwards = dict(reversed(METADATA.items()))
    assert (
        make(text, "again", backwards).path.read_bytes() == make(text, "carrying", METADATA).path.read_bytes()
    )


# --- LiteRT ----------------------------------------------------------------------------------------------


def tiny_model(shape: tuple[int, ...] = (1, 3, 2, 2), *, answers: int = 3) -> Any:
    """Return `image` → fully connected → `scores` [1, answers] as objects, with an entry for the oldest runtime."""

    def tensor(name: str, sides: list[int], buffer: int) -> Any:
        item = schema.TensorT()
        item.name, item.shape, item.buffer, item.type = (
            name.encode(),
            sides,
            buffer,
            schema.TensorType.FLOAT32,
        )
        return item

    def buffer(content: bytes | None = None) -> Any:
        item = schema.BufferT()
        item.data = None if content is None else np.frombuffer(content, np.uint8)
        return item

    def entry(name: str, index: int) -> Any:
        item = schema.TensorMapT()
        item.name, item.tensorIndex = name.encode(), index
        return item

    inner = int(np.prod(shape))
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("serving_default_image:0", list(shape), 1), tensor("weight", [answers, inner], 2),
        tensor("bias", [answers], 3), tensor("call:0", [1, answers], 4),
    ]  # fmt: skip
    graph.inputs, graph.outputs, graph.operators, graph.name = [0], [3], [operator], b"main"
    signature = schema.SignatureDefT()
    signature.inputs, signature.outputs = [entry("image", 0)], [entry("scores", 3)]
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    oldest = schema.MetadataT()
    oldest.name, oldest.buffer = b"min_runtime_version", 5
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.signatureDefs = 3, [code], [graph], [signature]
    weight = np.arange(answers * inner, dtype=np.float32).reshape(answers, inner) / 10
    model.buffers = [
        buffer(), buffer(), buffer(weight.tobytes()), buffer(np.ones(answers, np.float32).tobytes()), buffer(),
        buffer(b"1.5.0".ljust(16, b"\0")),
    ]  # fmt: skip
    model.metadata = [oldest]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return read_model(bytes(builder.Output()))


def carrying(model: Any, metadata: dict[str, str]) -> bytes:
    add_metadata(model, metadata, "tflite:float32")
    return labels_archive(pack(model), metadata)


def entries_of(content: bytes) -> dict[str, bytes]:
    """Return the metadata entries of a `.tflite`, read by the runtime's own schema."""
    model = schema.Model.GetRootAs(content, 0)
    found = {}
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        data = model.Buffers(entry.Buffer()).DataAsNumpy()
        assert entry.Name().decode() not in found
        found[entry.Name().decode()] = bytes(data)
    return found


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("carrying") / "net.tflite"
    path.write_bytes(carrying(tiny_model(), METADATA))
    return path


def test_an_independent_reader_finds_our_entries_beside_the_others(tflite_file: Path) -> None:
    entries = entries_of(tflite_file.read_bytes())
    assert list(entries) == ["min_runtime_version", "TFLITE_METADATA", CONTRACT_KEY, MODEL_KEY]
    assert entries["min_runtime_version"].rstrip(b"\0") == b"1.5.0"
    assert json.loads(entries[CONTRACT_KEY]) == DOCUMENT
    assert entries[MODEL_KEY].decode() == "net 1.2.0-rc.1"


def test_litert_loads_and_computes_the_same(tflite_file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(pack(tiny_model()))
    image = np.random.default_rng(1).normal(size=(1, 3, 2, 2)).astype(np.float32)
    answers = []
    for path in (bare, tflite_file):
        interpreter = Interpreter(model_path=str(path))
        answers.append(interpreter.get_signature_runner()(image=image)["scores"])
    np.testing.assert_array_equal(*answers)


@pytest.mark.skipif(
    not OLD_RUNTIME, reason="EDGE_TFLITE_RUNTIME_PYTHON names no Python with tflite-runtime 2.14"
)
def test_the_old_runtime_loads_it_too(tflite_file: Path) -> None:
    script = """
import sys, numpy as np
from tflite_runtime.interpreter import Interpreter
print(Interpreter(sys.argv[1]).get_signature_runner()(image=np.zeros((1, 3, 2, 2), np.float32))["scores"].tolist())
"""
    done = subprocess.run(
        [OLD_RUNTIME, "-c", script, str(tflite_file)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [[1.0, 1.0, 1.0]]


def test_equal_metadata_gives_equal_bytes_and_reading_loses_nothing(tflite_file: Path) -> None:
    content = tflite_file.read_bytes()
    assert carrying(tiny_model(), dict(reversed(METADATA.items()))) == content
    assert labels_archive(pack(read_model(content)), METADATA) == content


def test_without_metadata_the_file_is_what_it_was() -> None:
    assert carrying(tiny_model(), {}) == pack(tiny_model())


def test_what_it_costs(tflite_file: Path) -> None:
    standard = len(entries_of(tflite_file.read_bytes())["TFLITE_METADATA"])
    told = sum(len(value.encode()) for value in METADATA.values())
    added = len(tflite_file.read_bytes()) - len(pack(tiny_model()))
    assert standard < 1000
    assert added < standard + told + 400


# The standard entry, read slot by slot: no library that knows its schema is small enough to test with.


def text(table: Table, slot: int) -> str:
    return str(table.String(table.Pos + table.Offset(4 + 2 * slot)).decode())


def inner(table: Table, slot: int) -> Table:
    return Table(table.Bytes, table.Indirect(table.Pos + table.Offset(4 + 2 * slot)))


def items(table: Table, slot: int) -> list[Table]:
    offset = table.Offset(4 + 2 * slot)
    start = table.Vector(offset)
    return [
        Table(table.Bytes, table.Indirect(start + 4 * number)) for number in range(table.VectorLen(offset))
    ]


def words(table: Table, slot: int) -> list[str]:
    offset = table.Offset(4 + 2 * slot)
    start = table.Vector(offset)
    return [table.String(start + 4 * number).decode() for number in range(table.VectorLen(offset))]


def floats(table: Table, slot: int) -> list[float]:
    array = table.GetVectorAsNumpy(flatbuffers.number_types.Float32Flags, table.Offset(4 + 2 * slot))
    return [float(value) for value in array]


def number(table: Table, slot: int, flags: Any) -> int:
    return int(table.Get(flags, table.Pos + table.Offset(4 + 2 * slot)))


def standard_root(content: bytes) -> Table:
    entry = entries_of(content)["TFLITE_METADATA"]
    assert entry[4:8] == b"M001"
    return Table(bytearray(entry), struct.unpack("<I", entry[:4])[0])


BYTE, UBYTE, UINT = (
    flatbuffers.number_types.Int8Flags,
    flatbuffers.number_types.Uint8Flags,
    flatbuffers.number_types.Uint32Flags,
)


def test_the_standard_entry_says_how_a_picture_is_prepared(tflite_file: Path) -> None:
    root = standard_root(tflite_file.read_bytes())
    assert [text(root, slot) for slot in (0, 1, 2, 7)] == [
        "net",
        "tflite:float32, written by edge-exporter",
        "1.2.0-rc.1",
        "1.0.0",
    ]
    (graph,) = items(root, 3)
    (image,), (scores,) = items(graph, 2), items(graph, 3)
    assert (text(image, 0), text(image, 1)) == ("image", describe_contract(CONTRACT.to_dict()))
    assert words(image, 2) == ["batch", "channel", "height", "width"]
    content = inner(image, 3)
    assert number(content, 0, UBYTE) == 2, "ImageProperties"
    properties = inner(content, 1)
    assert number(properties, 0, BYTE) == 1, "RGB"
    size = inner(properties, 1)
    assert [number(size, slot, UINT) for slot in (0, 1)] == [2, 2]
    (unit,) = items(image, 4)
    assert number(unit, 0, UBYTE) == 1, "NormalizationOptions"
    mean, std = floats(inner(unit, 1), 0), floats(inner(unit, 1), 1)
    np.testing.assert_allclose(mean, [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(std, [58.395, 57.12, 57.375], rtol=1e-6)
    highest, lowest = floats(inner(image, 5), 0), floats(inner(image, 5), 1)
    np.testing.assert_allclose(highest, (1 - np.array(CONTRACT.mean)) / CONTRACT.std, rtol=1e-6)
    np.testing.assert_allclose(lowest, -np.array(CONTRACT.mean) / CONTRACT.std, rtol=1e-6)
    (file,) = items(scores, 6)
    assert (text(scores, 0), text(file, 0), number(file, 2, BYTE)) == ("scores", "labels.txt", 2)


def test_class_names_are_the_zip_behind_the_model(tflite_file: Path) -> None:
    with zipfile.ZipFile(tflite_file) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().split("\n") == list(LABELS)
        (entry,) = archive.infolist()
        assert (entry.date_time, entry.compress_type) == ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)


@pytest.mark.parametrize("labels", [(), ("a", "b\nc", "d"), ("a", "", "b")])
def test_labels_that_no_line_holds_stay_in_our_entry_alone(labels: tuple[str, ...]) -> None:
    metadata = file_metadata("net", "1.0.0", CONTRACT.to_dict(), labels)
    content = carrying(tiny_model(), metadata)
    assert not zipfile.is_zipfile(io.BytesIO(content))
    (graph,) = items(standard_root(content), 3)
    assert not items(graph, 3)[0].Offset(4 + 2 * 6)
    assert json.loads(entries_of(content)[CONTRACT_KEY])["labels"] == list(labels)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["NCHW", "NHWC"]),
    st.sampled_from(["RGB", "BGR", "L"]),
    st.floats(1e-3, 2) | st.floats(-2, -1e-3),
    st.floats(-3, 3),
    st.floats(0.01, 3),
)
def test_its_normalisation_is_ours_for_levels_of_0_to_255(
    layout: str, color: str, scale: float, mean: float, std: float
) -> None:
    contract = Preprocess(size=(2, 2), layout=layout, color=color, scale=scale, mean=(mean,), std=(std,))
    content = carrying(
        tiny_model(contract.shape), file_metadata("net", "1.0.0", describe_preprocess(contract), [])
    )
    (graph,) = items(standard_root(content), 3)
    (image,) = items(graph, 2)
    assert words(image, 2)[1] == ("channel" if layout == "NCHW" else "height")
    assert number(inner(inner(image, 3), 1), 0, BYTE) == {"RGB": 1, "L": 2, "BGR": 0}[color] or color == "BGR"
    (unit,) = items(image, 4)
    theirs, widths = floats(inner(unit, 1), 0), floats(inner(unit, 1), 1)
    assert len(theirs) == contract.channels
    for level in (0.0, 77.0, 255.0):
        ours = (level * scale - mean) / std
        assert (level - theirs[0]) / widths[0] == pytest.approx(
            ours, rel=1e-4, abs=1e-4 * (1 + abs(mean)) / std
        )
    assert floats(inner(image, 5), 0)[0] >= floats(inner(image, 5), 1)[0]


@pytest.mark.parametrize(
    "metadata",
    [
        file_metadata("net", "1.0.0", {}, []),
        file_metadata("net", "1.0.0", dataclasses.replace(CONTRACT, size=(4, 4)).to_dict(), ["a", "b"]),
    ],
)
def test_tensors_that_are_no_pictures_are_only_named(metadata: dict[str, str]) -> None:
    (graph,) = items(standard_root(carrying(tiny_model(), metadata)), 3)
    (image,), (scores,) = items(graph, 2), items(graph, 3)
    assert (text(image, 0), text(image, 1)) == ("image", "float32[1, 3, 2, 2]")
    assert (text(scores, 0), text(scores, 1)) == ("scores", "float32[1, 3]")
    assert not image.Offset(4 + 2 * 3)


# --- showing it ------------------------------------------------------------------------------------------


def shown(path: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["inspect", str(path), *options])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", ["onnx", "ort", "tflite"])
def test_inspect_shows_the_contract_of_a_file(
    make: Callable[..., Artifact], tflite_file: Path, kind: str
) -> None:
    path = (
        tflite_file if kind == "tflite" else make(f"{kind}:weight_only_wi8@fixed", "carrying", METADATA).path
    )
    answer = json.loads(shown(path, "--json"))
    assert answer["contract"] == DOCUMENT
    assert answer["model"] == "net 1.2.0-rc.1"
    assert [item["name"] for item in (*answer["inputs"], *answer["outputs"])] == ["image", "scores"]
    assert answer["inputs"][0]["shape"] == [1, 3, 2, 2]
    assert answer["inputs"][0]["dtype"] == "float32"
    people = " ".join(shown(path).split())
    assert "net 1.2.0-rc.1" in people
    assert "RGB picture, 2 wide and 2 high (stretch, bilinear), as float32 NCHW" in people
    assert "3: cat, naïve bird, 犬" in people


@pytest.mark.parametrize("kind", ["onnx", "ort", "tflite"])
def test_the_documented_python_reads_it_back(
    make: Callable[..., Artifact], tflite_file: Path, kind: str
) -> None:
    page = (ROOT / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)  # the page's own code
    path = (
        tflite_file if kind == "tflite" else make(f"{kind}:weight_only_wi8@fixed", "carrying", METADATA).path
    )
    assert names["read_contract"](str(path)) == DOCUMENT


def test_inspect_of_files_that_carry_none(make: Callable[..., Artifact], tmp_path: Path) -> None:
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(pack(tiny_model()))
    assert json.loads(shown(bare, "--json"))["contract"] is None
    assert "none: it carries no edge.contract" in shown(bare)
    assert "edge.contract" not in shown(make("onnx:float32", "bare", {}).path)


def test_quantised_tensors_are_shown_with_their_scales(tmp_path: Path) -> None:
    model = tiny_model()
    parameters = schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = [0.0078125], [-1]
    tensor = model.subgraphs[0].tensors[0]
    tensor.type, tensor.quantization = schema.TensorType.INT8, parameters
    path = tmp_path / "int8.tflite"
    path.write_bytes(pack(model))
    (image,) = inspect_flatbuffer(path).inputs
    assert (image.dtype, image.quantization) == ("int8", "scale 0.0078125, zero point -1")
    assert "scale 0.0078125, zero point -1" in shown(path)


def test_a_file_that_carries_nonsense_is_refused(make: Callable[..., Artifact], tmp_path: Path) -> None:
    model = tiny_model()
    add_metadata(model, {MODEL_KEY: "net 1.0.0"}, "tflite:float32")
    content = pack(model)
    assert entries_of(content)[MODEL_KEY] == b"net 1.0.0"
    path = make("onnx:float32", "nonsense", {CONTRACT_KEY: "{}"}).path
    with pytest.raises(
        IntegrityError, match=r"net-float32\.onnx: edge\.contract is no preprocessing contract"
    ):
        inspect_onnx(path)


@pytest.mark.parametrize("suffix", ["ort", "tflite"])
def test_damaged_files_are_refused_and_never_crash(
    make: Callable[..., Artifact], tflite_file: Path, tmp_path: Path, suffix: str
) -> None:
    path = tflite_file if suffix == "tflite" else make("ort:weight_only_wi8@fixed", "carrying", METADATA).path
    sound, random = path.read_bytes(), np.random.default_rng(0)
    victim = tmp_path / f"victim.{suffix}"
    refused = 0
    for _ in range(150):
        content = bytearray(sound)
        for place in random.integers(0, len(sound), 12):
            content[place] = random.integers(256)
        victim.write_bytes(content[: random.integers(9, len(content))])
        try:
            inspect_flatbuffer(victim)
        except (InputError, IntegrityError):
            refused += 1
    assert refused > 100
    victim.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(InputError, match=rf"is no \.{suffix} file: it looks like a zip archive"):
        inspect_flatbuffer(victim)

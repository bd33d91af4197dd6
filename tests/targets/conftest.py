"""What the target tests share: distributions that register targets, and a real bundle around tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calibration.preprocess import Preprocess
from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, TensorSpec
from exporter.system.files import digest
from targets.base import BundleRequest, Delivery, ModelCard
from targets.discovery import GROUP, get_target

PICTURE_CONTRACT: dict[str, Any] = {
    "kind": "image",
    "layout": "NCHW",
    "color": "L",
    "size": [2, 2],
    "resize": "bilinear",
    "fit": "stretch",
    "scale": 1 / 255,
    "mean": [0.25],
    "std": [0.5],
    "dtype": "float32",
    "pad": 0,
}
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 10 - 0.5
BIAS = np.array([0.5, -0.25, 0.0], np.float32)


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a distribution (module and metadata, as pip would lay them) that registers one target."""
    count = 0

    def install(name: str, module: str, source: str, *, distribution: str = "acme-targets") -> Path:
        nonlocal count
        count += 1
        site = tmp_path / f"site{count}"
        metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:TARGET\n")
        (site / f"{module}.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        return site

    return install


@pytest.fixture
def pi_bundle(tmp_path: Path) -> Path:
    """A complete Raspberry Pi bundle: one ONNX and one LiteRT file that both run, with golden vectors."""
    destination = tmp_path / "bundle"
    (destination / "models").mkdir(parents=True)
    onnx_file = destination / "models" / "tiny-float32.onnx"
    tflite_file = destination / "models" / "tiny-float32.tflite"
    write_onnx(onnx_file)
    write_tflite(tflite_file)
    write_golden(destination / "golden", onnx_file, tflite_file)
    target = get_target("raspberry-pi")
    options = target.options_model()
    capabilities = target.capabilities(options)
    deliveries = tuple(
        Delivery(_artifact(ArtifactSpec.parse(text), path, batch), Evidence(ArtifactSpec.parse(text)), ())
        for text, path, batch in (
            ("onnx:float32", onnx_file, "batch"),
            ("tflite:float32", tflite_file, 1),
        )
    )
    deliveries = tuple(
        Delivery(item.artifact, item.evidence, capabilities.runtimes_for(item.artifact.spec))
        for item in deliveries
    )
    card = ModelCard("tiny", "1.0.0", ("cat", "dog", "naïve bird"), PICTURE_CONTRACT, "0.1.0")
    target.bundle(BundleRequest(card, deliveries, options, destination))
    return destination


def _artifact(spec: ArtifactSpec, path: Path, batch: int | str) -> Artifact:
    return Artifact(
        spec,
        path,
        path.stat().st_size,
        digest(path),
        (TensorSpec("image", "float32", (batch, 1, 2, 2)),),
        (TensorSpec("logits", "float32", (batch, 3)),),
        Coverage(()),
    )


def write_onnx(path: Path) -> None:
    """Write `image` [batch, 1, 2, 2] → flatten → x·Wᵀ + b → `logits` [batch, 3]."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def write_tflite(path: Path) -> None:
    """Write the same function for `image` [1, 1, 2, 2] as one fully connected operator."""

    def tensor(name: str, shape: list[int], buffer: int) -> Any:
        item = schema.TensorT()
        item.name, item.shape, item.buffer, item.type = name, shape, buffer, schema.TensorType.FLOAT32
        return item

    def buffer(content: np.ndarray | None = None) -> Any:
        item = schema.BufferT()
        item.data = None if content is None else np.frombuffer(content.tobytes(), np.uint8)
        return item

    def entry(name: str, index: int) -> Any:
        item = schema.TensorMapT()
        item.name, item.tensorIndex = name, index
        return item

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("serving_default_image:0", [1, 1, 2, 2], 1),
        tensor("weight", [3, 4], 2),
        tensor("bias", [3], 3),
        tensor("StatefulPartitionedCall:0", [1, 3], 4),
    ]
    graph.inputs, graph.outputs, graph.operators, graph.name = [0], [3], [operator], "main"
    signature = schema.SignatureDefT()
    signature.inputs, signature.outputs = [entry("image", 0)], [entry("logits", 3)]
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.signatureDefs = 3, [code], [graph], [signature]
    model.buffers = [buffer(), buffer(), buffer(WEIGHT), buffer(BIAS), buffer()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def write_golden(folder: Path, onnx_file: Path, tflite_file: Path) -> None:
    """Write two golden samples in the format of a build: each begins with a picture."""
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(7)
    samples = []
    for number in range(2):
        (folder / str(number)).mkdir(parents=True)
        picture = Image.fromarray(random.integers(0, 256, (5, 6), np.uint8))
        picture.save(folder / f"{number}/raw.image.png")
        image = Preprocess.from_dict(PICTURE_CONTRACT).apply(picture)
        (logits,) = session.run(None, {"image": image})
        np.save(folder / f"{number}/input.image.npy", image)
        np.save(folder / f"{number}/reference.logits.npy", logits)
        np.save(folder / f"{number}/{onnx_file.stem}.logits.npy", logits)
        samples.append(
            {
                "raw": {"image": f"{number}/raw.image.png"},
                "inputs": {"image": f"{number}/input.image.npy"},
                "reference": {"logits": f"{number}/reference.logits.npy"},
                "outputs": {onnx_file.name: {"logits": f"{number}/{onnx_file.stem}.logits.npy"}},
            }
        )
    tolerance = {"max_abs": 1e-5, "max_abs_reference": 1e-4}
    document = {
        "format": 1,
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 1, 2, 2]}],
        "samples": samples,
        "tolerance": {onnx_file.name: tolerance, tflite_file.name: tolerance},
    }
    (folder / "golden.json").write_text(json.dumps(document, sort_keys=True), encoding="utf-8")

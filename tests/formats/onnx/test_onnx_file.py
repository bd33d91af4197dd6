"""`.onnx` and `.ort` files as their producers write them: sizes, shapes, bytes, and answers under onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibration.collect import collect
from calibration.dataset import ListDataset
from exporter.artifacts import Artifact, ArtifactSpec, TensorSpec
from exporter.errors import UnsupportedError
from exporter.formats.base import ProduceRequest
from exporter.formats.producers import produce
from exporter.judging.metrics import compare_outputs
from exporter.model import onnx_write
from exporter.model.onnx_write import save_onnx
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import activation_values
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.system.files import digest

NETWORK = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 3, 16, 16] image) => (float[batch, 10] logits) {
    [stem] a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w0, b0)
    [act] r = HardSwish (a)
    [mix] c = Conv (r, w1, b1)
    [relu] d = Relu (c)
    [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [wide] g = Gemm <transB = 1> (f, w2, b2)
    [act2] h = Relu (g)
    [head] logits = Gemm <transB = 1> (h, w3, b3)
}
"""
SHAPES = {
    "w0": (32, 3, 3, 3), "b0": (32,), "w1": (64, 32, 1, 1), "b1": (64,), "w2": (512, 64), "b2": (512,),
    "w3": (10, 512), "b3": (10,),
}  # fmt: skip
FLOORS_DB = {
    "onnx:static_wi8_ai8": 28, "onnx:static_wi8_ai8@fixed": 28, "onnx:static_wi8_ai8_u": 28,
    "onnx:dynamic_wi8_ai8": 28, "onnx:weight_only_wi8": 35, "onnx:weight_only_wi4_b32": 14,
    "onnx:weight_only_wi4_b128": 12, "onnx:float32": 100, "onnx:float32@fixed": 100,
    "ort:static_wi8_ai8@fixed": 28, "ort:float32": 100,
}  # fmt: skip


class Bench:
    """One float graph with calibration data, and whatever artifacts were asked of it."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(3)
        proto = onnx.parser.parse_model(NETWORK)
        for name, shape in SHAPES.items():
            fan_in = int(np.prod(shape[1:])) or 10
            array = rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        self.folder = folder
        self.onnx = folder / "float32.onnx"
        save_onnx(ir.from_proto(onnx.shape_inference.infer_shapes(proto)), self.onnx)
        self.samples = [{"image": rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32)} for _ in range(12)]
        names = activation_values(ir.load(self.onnx), ())
        statistics = collect(self.onnx, names, ListDataset(self.samples[:8]))
        self.encodings = Encodings(choose_ranges(ir.load(self.onnx), statistics, "minmax", (), {}))
        self.made: dict[str, Artifact] = {}

    def make(self, text: str, destination: Path | None = None) -> Artifact:
        home = destination or self.folder / "models"
        home.mkdir(exist_ok=True)
        request = ProduceRequest(
            spec=ArtifactSpec.parse(text),
            model_name="net",
            onnx=self.onnx,
            program=None,
            inputs=(TensorSpec("image", "float32", ("batch", 3, 16, 16)),),
            outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
            axes={"batch": 1},
            samples=None,
            rule="minmax",
            encodings=self.encodings,
            destination=home,
            workdir=self.folder / "work",
        )
        return produce(request)

    def artifact(self, text: str) -> Artifact:
        if text not in self.made:
            self.made[text] = self.make(text)
        return self.made[text]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("onnx-files"))


@pytest.mark.parametrize("text", FLOORS_DB)
def test_an_artifact_answers_as_the_float_graph_does(bench: Bench, text: str) -> None:
    artifact = bench.artifact(text)
    reference, model = OnnxModel(bench.onnx), OnnxModel(artifact.path)
    unseen = bench.samples[8:]
    fidelity = compare_outputs([reference.run(s) for s in unseen], [model.run(s) for s in unseen])
    assert fidelity.sqnr_db > FLOORS_DB[text]


@pytest.mark.parametrize("text", FLOORS_DB)
def test_the_description_is_of_the_file(bench: Bench, text: str) -> None:
    artifact = bench.artifact(text)
    assert artifact.size_bytes == artifact.path.stat().st_size
    assert artifact.sha256 == digest(artifact.path)
    model = OnnxModel(artifact.path)
    assert model.inputs == artifact.inputs
    assert model.outputs == artifact.outputs
    assert isinstance(artifact.inputs[0].shape[0], int) == text.endswith("@fixed")


@pytest.mark.parametrize("text", [text for text in FLOORS_DB if text.startswith("onnx")])
def test_equal_requests_give_equal_bytes_that_phones_load(bench: Bench, tmp_path: Path, text: str) -> None:
    again = bench.make(text, tmp_path / "again")
    assert again.path.read_bytes() == bench.artifact(text).path.read_bytes()
    model = onnx.load(again.path)
    onnx.checker.check_model(model, full_check="com.microsoft" not in {o.domain for o in model.opset_import})
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    assert not model.doc_string
    assert not model.metadata_props
    assert str(bench.folder).encode() not in again.path.read_bytes()


def test_an_ort_file_made_twice_is_the_same_bytes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "ort:static_wi8_ai8@fixed"
    bench.artifact(text)
    monkeypatch.setenv("EDGE_FRESH_CHILDREN", "1")  # the first came out of a fork of a warm process
    again = bench.make(text, tmp_path / "again")
    assert again.path.read_bytes() == bench.artifact(text).path.read_bytes()
    assert again.sha256 == bench.artifact(text).sha256 == digest(again.path)


def test_the_conversion_to_ort_does_without_torch(bench: Bench, tmp_path: Path) -> None:
    """onnxruntime's tools would import it, a second and 200 MB for nothing."""
    request = {
        "onnx": str(bench.artifact("onnx:static_wi8_ai8@fixed").path),
        "ort": str(tmp_path / "net.ort"),
        "operators": str(tmp_path / "net.config"),
    }
    script = (
        "import sys\nfrom exporter.formats.onnx.ort_convert import convert\n"
        f"convert({request!r})\nprint('torch' in sys.modules)\nimport torch\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_fewer_bits_make_smaller_files(bench: Bench) -> None:
    sizes = {
        text: bench.artifact(f"onnx:{text}").size_bytes
        for text in ("float32", "static_wi8_ai8", "weight_only_wi8")
    }
    int4 = bench.artifact("onnx:weight_only_wi4_b128").size_bytes
    assert sizes["float32"] > 2.5 * sizes["static_wi8_ai8"]
    assert sizes["weight_only_wi8"] > int4


def test_an_ort_file_keeps_signed_int8_kernels_and_lists_its_operators(bench: Bench) -> None:
    artifact = bench.artifact("ort:static_wi8_ai8@fixed")
    (listing,) = artifact.companions
    text = listing.read_text()
    assert "com.microsoft;1;" in text or "ai.onnx;10;" in text or "ai.onnx;18" in text
    assert "QLinearConv" in text
    assert "nchwc" not in text.lower(), "that layout exists on x86 alone"
    assert str(bench.folder) not in text
    assert b"QLinearConv" in artifact.path.read_bytes()


def test_float16_onnx_is_refused_with_what_to_use_instead(bench: Bench) -> None:
    with pytest.raises(UnsupportedError, match="slow on most CPU builds") as caught:
        bench.make("onnx:float16")
    assert "tflite:float16" in caught.value.fix


def test_weights_past_the_protobuf_limit_move_beside_the_model(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_write, "PROTOBUF_LIMIT_BYTES", 10_000)
    artifact = bench.make("onnx:float32", tmp_path / "large")
    (data,) = artifact.companions
    assert data.name == "net-float32.onnx.data"
    assert artifact.size_bytes == artifact.path.stat().st_size + data.stat().st_size
    sample = bench.samples[0]
    np.testing.assert_array_equal(
        OnnxModel(artifact.path).run(sample)["logits"], OnnxModel(bench.onnx).run(sample)["logits"]
    )

"""What tests of Swift packages stand on: a small real bundle, a server of files, and git."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calibration.preprocess import Preprocess
from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, TensorSpec
from exporter.bundle.manifest import write_manifest
from exporter.bundle.png import encode_png
from exporter.system.files import digest, size_bytes
from targets.base import BundleRequest, Delivery, ModelCard
from targets.ios import swiftpm
from targets.ios.target import TARGET, IosOptions
from targets.packaging.base import Package, PackRequest, Published, read_bundle

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git; fix: apt-get install git")
CONTRACT = Preprocess(size=(5, 4), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
LABELS = ("cat", 'a "quoted" $dog', "na\u00efve bird")
ARTIFACTS = ("mlpackage:float16", "mlpackage:weight_only_wi8", "onnx:float32@fixed", "onnx:static_wi8_ai8")
SIGNATURE = (TensorSpec("image", "float32", (1, 3, 5, 4)),), (TensorSpec("logits", "float32", (1, 3)),)


def make_bundle(
    folder: Path,
    *,
    name: str = "tiny-net",
    version: str = "1.0.0",
    artifacts: tuple[str, ...] = ARTIFACTS,
    contract: Mapping[str, Any] | None = None,
    minimum: str = "17",
) -> Path:
    """Write an iOS bundle as a build would: an ONNX model that runs, Core ML packages that do not, golden pictures."""
    models = folder / "models"
    models.mkdir(parents=True)
    options = IosOptions(minimum=minimum)
    deliveries = []
    for text in artifacts:
        spec = ArtifactSpec.parse(text)
        path = models / spec.file_name(name)
        if path.suffix == ".mlpackage":
            _write_package(path, text)
        else:
            _write_onnx(path)
        artifact = Artifact(spec, path, size_bytes(path), digest(path), *SIGNATURE, Coverage(()))
        deliveries.append(Delivery(artifact, Evidence(spec), TARGET.capabilities(options).runtimes_for(spec)))
    _write_golden(folder / "golden", models)
    document = CONTRACT.to_dict() if contract is None else contract
    card = ModelCard(name, version, LABELS, document, "0.0.0")
    TARGET.bundle(BundleRequest(card, tuple(deliveries), options, folder))
    write_manifest(
        folder,
        {
            "name": name,
            "version": version,
            "target": "ios",
            "tool": "edge-exporter 0.0.0",
            "budget": {},
            "options": options.model_dump(mode="json", exclude={"artifacts", "budget"}),
            "artifacts": [],
        },
    )
    return folder


def pack(bundle: Path, registry: Path) -> tuple[Package, ...]:
    """Pack a bundle into a registry, beside what is there."""
    return TARGET.pack(PackRequest(read_bundle(bundle), registry))


def write_view(packages: tuple[Package, ...], registry: Path) -> None:
    """Write the listings of `packages` into a registry."""
    published = [Published(package, {}, {}) for package in packages]
    for path, content in swiftpm.view(published).items():
        (registry / path).parent.mkdir(parents=True, exist_ok=True)
        (registry / path).write_bytes(content)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own server of files: it knows no git."""

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve `root` over HTTP on loopback, and yield its URL."""
    handler = functools.partial(_Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _write_package(path: Path, text: str) -> None:
    inside = path / "Data" / "com.apple.CoreML"
    (inside / "weights").mkdir(parents=True)
    (path / "Manifest.json").write_text("{}\n", encoding="utf-8")
    (inside / "model.mlmodel").write_bytes(f"not a model: {text}".encode())
    (inside / "weights" / "weight.bin").write_bytes(bytes(range(256)) * 300)


def _write_onnx(path: Path) -> None:
    """Write `image` [1, 3, 5, 4] → flatten → x·W + b → `logits` [1, 3]."""
    random = np.random.default_rng(1)
    weight, bias = random.normal(size=(60, 3)).astype(np.float32), np.array([0.5, -0.25, 0], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 5, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _write_golden(folder: Path, models: Path) -> None:
    files = sorted(models.glob("*.onnx"))
    samples = []
    random = np.random.default_rng(7)
    for number in range(2):
        (folder / str(number)).mkdir(parents=True)
        png = encode_png(random.integers(0, 256, (9, 7, 3), np.uint8))
        (folder / f"{number}/raw.image.png").write_bytes(png)
        image = CONTRACT.apply(Image.open(io.BytesIO(png)))
        np.save(folder / f"{number}/input.image.npy", image)
        outputs = {}
        for file in files:
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            (logits,) = session.run(None, {"image": image})
            np.save(folder / f"{number}/{file.name}.logits.npy", logits)
            outputs[file.name] = {"logits": f"{number}/{file.name}.logits.npy"}
        reference = logits if files else np.zeros((1, 3), np.float32)
        np.save(folder / f"{number}/reference.logits.npy", reference)
        samples.append(
            {
                "inputs": {"image": f"{number}/input.image.npy"},
                "raw": {"image": f"{number}/raw.image.png"},
                "reference": {"logits": f"{number}/reference.logits.npy"},
                "outputs": outputs,
            }
        )
    document = {
        "format": 1,
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 5, 4]}],
        "reveals": ["color"],
        "samples": samples,
        "tolerance": {file.name: {"max_abs": 1e-5, "max_abs_reference": 1e-4} for file in files},
    }
    (folder / "golden.json").write_text(json.dumps(document, sort_keys=True), encoding="utf-8")

"""ONNX models for fault tests: a small sound one, and ways to break it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def weights() -> dict[str, np.ndarray]:
    """Return the initializers of `make_onnx`."""
    generator = np.random.default_rng(0)
    return {
        "kernel": generator.normal(0, 0.3, (4, 1, 3, 3)).astype(np.float32),
        "matrix": generator.normal(0, 0.1, (256, 5)).astype(np.float32),
        "bias": generator.normal(0, 0.1, 5).astype(np.float32),
    }


def make_onnx(
    *, opset: int = 18, ir_version: int = 8, arrays: Mapping[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """Return Conv, Relu, Flatten, Gemm on `image` [batch, 1, 8, 8]."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["mapped"], pads=[1, 1, 1, 1], name="conv"),
            helper.make_node("Relu", ["mapped"], ["positive"], name="relu"),
            helper.make_node("Flatten", ["positive"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"], name="gemm"),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, key) for key, array in {**weights(), **(arrays or {})}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to one file."""
    path.write_bytes(model.SerializeToString())


def save_external(
    path: Path, *, location: str | None = None, data: bytes | None = None, **entries: str
) -> Path:
    """Write `make_onnx()` with `matrix` kept in a file beside it; `location` and `entries` say where and how.

    Returns the path of the data file.
    """
    model = make_onnx()
    tensor = next(item for item in model.graph.initializer if item.name == "matrix")
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    name = f"{path.name}.data"
    fields = {"location": location or name, "offset": "0", "length": str(len(content)), **entries}
    for key, value in fields.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    beside = path.parent / name
    beside.write_bytes(content if data is None else data)
    save_onnx(model, path)
    return beside

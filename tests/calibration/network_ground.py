"""A network for tests of calibration: many large activations, dynamic sizes, and some that fuse when unobserved."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def deep_network(layers: int = 4, channels: int = 4) -> tuple[bytes, list[str]]:
    """Return Conv → Relu, `layers` times, over `image` [n, channels, h, w], and the names of all activations."""
    rng = np.random.default_rng(1)
    nodes, weights, names, last = [], [], ["image"], "image"
    for index in range(layers):
        weight = rng.standard_normal((channels, channels, 3, 3)) / (3 * channels**0.5)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{index}"))
        nodes += [
            helper.make_node("Conv", [last, f"weight{index}"], [f"conv{index}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]),
        ]
        last = f"relu{index}"
        names += [f"conv{index}", last]
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, "h", "w"])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", channels, "h", "w"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString(), names


def pictures(samples: int, channels: int = 4, side: int = 24) -> np.ndarray:
    """Return float32 `[samples, channels, side, side]`, each sample larger than the one before."""
    rng = np.random.default_rng(2)
    loudness = np.arange(1, samples + 1, dtype=np.float32)[:, None, None, None]
    return rng.standard_normal((samples, channels, side, side), dtype=np.float32) * loudness

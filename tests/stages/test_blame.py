"""The layer that loses the signal is the one that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from exporter.model.onnx_write import forget_inner_shapes, save_onnx
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.regions import activation_values
from exporter.quantize.static import quantize_static
from exporter.stages.blame import worst_layers

CHAIN = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
    [one] a = Conv (x, w)
    [two] b = Conv (a, w)
    [three] y = Conv (b, w)
}
"""


def test_a_layer_whose_range_is_far_too_wide_is_blamed_first(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(CHAIN)
    weight = np.random.default_rng(0).normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    ranges = dict.fromkeys(activation_values(model, ()), (-4.0, 4.0)) | {"b": (-400.0, 400.0)}
    save_onnx(model, tmp_path / "float.onnx")
    save_onnx(
        forget_inner_shapes(quantize_static(model, Encodings(ranges), unsigned=False).model),
        tmp_path / "int8.onnx",
    )
    samples = [
        {"x": np.random.default_rng(i).normal(0, 1, (1, 4, 6, 6)).astype(np.float32)} for i in range(3)
    ]
    losses = worst_layers(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples, count=3)
    assert losses[0].layer == "two"
    assert losses[0].lost_db > 20 > losses[2].lost_db
    assert losses[0].sqnr_db < 15

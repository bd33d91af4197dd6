"""What writing a graph may change: names of constants and sizes of axes, never its answers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from exporter.model.onnx_write import fix_axes, forget_inner_shapes, shorten_constant_names

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 4] x) => (float[batch, 4] y, float[4] kept) <float[4] kept = {1.0, 2.0, 3.0, 4.0},
    float[4] a_very_long_name_of_a_constant = {1.0, 0.5, 0.25, 0.0}> {
    [derived] also_from_constants = Neg (a_very_long_name_of_a_constant)
    [first] inner = Mul (x, a_very_long_name_of_a_constant)
    [second] y = Add (inner, also_from_constants)
}
"""


def model() -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT)))


def answers(graph: ir.Model) -> list[np.ndarray]:
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    return list(ReferenceEvaluator(ir.to_proto(graph)).run(None, feeds))


def test_short_names_change_no_answer_and_no_name_that_others_use() -> None:
    shortened = shorten_constant_names(forget_inner_shapes(model()))
    for want, have in zip(answers(model()), answers(shortened), strict=True):
        np.testing.assert_array_equal(want, have)
    proto = ir.to_proto(shortened)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.output] == ["y", "kept"]
    assert [node.name for node in proto.graph.node] == ["derived", "first", "second"]
    assert b"a_very_long_name" not in proto.SerializeToString()
    assert b"also_from_constants" not in proto.SerializeToString()


def test_fixed_axes_reach_inputs_and_outputs() -> None:
    fixed = fix_axes(model(), {"batch": 2})
    shapes = {value.name: list(value.shape) for value in [*fixed.graph.inputs, *fixed.graph.outputs]}
    assert shapes == {"x": [2, 4], "y": [2, 4], "kept": [4]}
    for want, have in zip(answers(model()), answers(fixed), strict=True):
        np.testing.assert_array_equal(want, have)


def test_an_output_behind_an_operator_without_inference_keeps_its_shape() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
    net (float[batch, 4] x) => (float[batch, 4] y) { [odd] y = com.microsoft.Gelu (x) }
    """
    fixed = fix_axes(ir.from_proto(onnx.parser.parse_model(text)), {"batch": 2})
    proto = ir.to_proto(fixed)
    onnx.checker.check_model(proto)
    assert [axis.dim_value for axis in proto.graph.output[0].type.tensor_type.shape.dim] == [2, 4]

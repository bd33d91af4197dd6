"""The static quantiser against independent judges: onnx.reference, onnxruntime's fusions, and numpy."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from exporter.errors import CalibrationError, RecipeError, UnsupportedError
from exporter.model.onnx_write import save_onnx
from exporter.quantize.integers.encodings import PLAIN, Encodings
from exporter.quantize.integers.grid import grid_of
from exporter.quantize.quantize import quantize
from exporter.quantize.regions import activation_values, decide_regions
from exporter.quantize.static import quantize_static
from exporter.schemes import Scheme

RNG = np.random.default_rng(7)

RESIDUAL = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 3, 8, 8] image) => (float[batch, 5] logits) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (image, w0, b0)
    [relu] r = Relu (a)
    [left] c = Conv <pads = [1, 1, 1, 1], group = 8> (r, w1, b1)
    [sum] s = Add (r, c)
    [next] d = Conv (s, w2, b2)
    [clip] e = Clip (d, zero, six)
    [pool] p = GlobalAveragePool (e)
    [flat] f = Flatten (p)
    [head] logits = Gemm <transB = 1> (f, w3, b3)
}
"""
WEIGHTS = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (6, 8, 1, 1), "b2": (6,), "w3": (5, 6),
    "b3": (5,),
}  # fmt: skip

ATTENTION = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 6, 16] tokens) => (float[batch, 6, 16] out) {
    [norm] n = LayerNormalization (tokens, gain, shift)
    [query] q = MatMul (n, wq)
    [key] k = MatMul (n, wk)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)
    [scores] m = MatMul (q, t)
    [soft] p = Softmax <axis = -1> (m)
    [mix] v = MatMul (p, n)
    [bias] h = Add (v, vb)
    [skip] out = Add (h, tokens)
}
"""
ATTENTION_WEIGHTS = {"gain": (16,), "shift": (16,), "wq": (16, 16), "wk": (16, 16), "vb": (16,)}


def graph(
    text: str, weights: dict[str, tuple[int, ...]], scale: float = 0.4, **constants: np.ndarray
) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    arrays = {
        name: RNG.normal(0, scale, shape).astype(np.float32) for name, shape in weights.items()
    } | constants
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    inferred = onnx.shape_inference.infer_shapes(proto)
    return ir.from_proto(inferred)


def residual() -> ir.Model:
    return graph(RESIDUAL, WEIGHTS, zero=np.float32(0).reshape(()), six=np.float32(6).reshape(()))


def attention() -> ir.Model:
    return graph(ATTENTION, ATTENTION_WEIGHTS)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def reference(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model)
    # The reference has DequantizeLinear from opset 19, whose meaning for int8 is that of opset 13.
    proto.opset_import[0].version = 19
    return np.asarray(ReferenceEvaluator(proto).run(None, feeds)[0])


def observed(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    names = activation_values(model, ())
    proto = ir.to_proto(model)
    present = {value.name for value in proto.graph.output} | {value.name for value in proto.graph.input}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present
    )
    answers = ReferenceEvaluator(proto).run(None, feeds)
    found = dict(zip([value.name for value in proto.graph.output], answers, strict=True)) | feeds
    return {name: (float(found[name].min()), float(found[name].max())) for name in names}


def optimized_operators(model: ir.Model, path: Path, *, as_on_arm: bool) -> collections.Counter[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    if as_on_arm:  # onnxruntime keeps signed activations on ARM; this entry asks an x86 host for the same
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def sqnr_db(want: np.ndarray, have: np.ndarray) -> float:
    return float(
        10 * np.log10(np.sum(want.astype(np.float64) ** 2) / np.sum((want - have).astype(np.float64) ** 2))
    )


@pytest.mark.parametrize("unsigned", [False, True], ids=["S8S8", "U8S8"])
@pytest.mark.parametrize("build", [residual, attention])
def test_the_quantised_graph_means_the_same_to_the_onnx_reference_and_to_onnxruntime(build, unsigned):
    model = build()
    feeds = {v.name: RNG.normal(0, 1, [2, *v.shape[1:]]).astype(np.float32) for v in model.graph.inputs}
    outcome = quantize_static(model, Encodings(observed(model, feeds)), unsigned=unsigned)
    exact, float_answer = reference(outcome.model, feeds), reference(model, feeds)
    assert sqnr_db(float_answer, exact) > 25
    # Kernels may round ties differently from the reference; a step of the last grid is what that can move.
    assert np.abs(run(outcome.model, feeds) - exact).max() < 0.05 * np.abs(float_answer).max()


@pytest.mark.parametrize("unsigned", [False, True], ids=["S8S8", "U8S8"])
def test_every_quantised_operator_becomes_an_int8_kernel_on_arm(tmp_path, unsigned):
    model = residual()
    feeds = {"image": RNG.normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    outcome = quantize_static(model, Encodings(observed(model, feeds)), unsigned=unsigned)
    operators = optimized_operators(outcome.model, tmp_path / "optimized.onnx", as_on_arm=True)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == operators["QLinearGlobalAveragePool"] == operators["QGemm"] == 1
    assert not {"Conv", "Gemm", "Relu", "Clip", "Add"} & set(operators)
    assert outcome.quantized == {"stem", "relu", "left", "sum", "next", "clip", "pool", "flat", "head"}


def test_attention_quantises_products_and_leaves_norm_softmax_and_residuals_float(tmp_path):
    model = attention()
    feeds = {"tokens": RNG.normal(0, 1, (1, 6, 16)).astype(np.float32)}
    outcome = quantize_static(model, Encodings(observed(model, feeds)), unsigned=True)
    assert outcome.quantized == {"query", "key", "scores", "mix"}
    operators = optimized_operators(outcome.model, tmp_path / "optimized.onnx", as_on_arm=True)
    assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 4
    assert operators["MatMul"] == 0


def test_the_given_graph_is_not_changed():
    model = residual()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    quantize_static(
        model, Encodings(dict.fromkeys(activation_values(model, ()), (-1.0, 1.0))), unsigned=False
    )
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_weights_are_stored_once_as_int8_per_channel_with_zero_point_zero(tmp_path):
    model = residual()
    ranges = dict.fromkeys(activation_values(model, ()), (-1.0, 1.0))
    quantized = quantize_static(model, Encodings(ranges), unsigned=False).model
    constants = {name: value.const_value.numpy() for name, value in quantized.graph.initializers.items()}
    assert not set(WEIGHTS) & set(constants), "float originals must leave the file"
    weights = [array for array in constants.values() if array.dtype == np.int8 and array.ndim > 1]
    assert sorted(array.shape for array in weights) == sorted(
        s for n, s in WEIGHTS.items() if n.startswith("w")
    )
    zero_points = [array for array in constants.values() if array.dtype == np.int8 and array.ndim == 1]
    assert zero_points and not any(array.any() for array in zero_points)
    (path,) = save_onnx(quantized, tmp_path / "quantized.onnx")
    assert path.stat().st_size < 9000


@given(
    low=st.floats(-1e30, 1e30), high=st.floats(-1e30, 1e30), unsigned=st.booleans(),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_grid_holds_zero_exactly_and_covers_its_range(low, high, unsigned):
    low, high = min(low, high), max(low, high)
    grid = grid_of(low, high, unsigned=unsigned)
    bottom, top = grid.range
    assert np.iinfo(grid.dtype).min <= grid.zero_point <= np.iinfo(grid.dtype).max
    assert np.isfinite(grid.scale)
    assert grid.scale >= np.finfo(np.float32).tiny
    step = float(grid.scale)
    assert bottom <= min(low, 0) + 0.51 * step
    assert top >= max(high, 0) - 0.51 * step


def test_a_nearly_dead_channel_keeps_its_bias():
    model = residual()
    weight = model.graph.initializers["w2"].const_value.numpy().copy()
    bias = model.graph.initializers["b2"].const_value.numpy().copy()
    weight[3], bias[3] = 1e-12, 3.0
    for name, array in (("w2", weight), ("b2", bias)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    feeds = {"image": RNG.normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    outcome = quantize_static(model, Encodings(observed(model, feeds)), unsigned=False)
    assert sqnr_db(reference(model, feeds), run(outcome.model, feeds)) > 20


def test_a_kept_layer_stays_float_and_says_so():
    model = residual()
    regions = decide_regions(model, ("left",))
    assert "left" not in regions.quantized
    assert regions.reasons["left"] == "kept in float by the recipe"
    assert "sum" not in regions.quantized, "an Add with a float operand is no place for int8"


def test_an_unseen_activation_is_named():
    model = residual()
    with pytest.raises(CalibrationError, match="no range for activation image"):
        quantize_static(model, PLAIN, unsigned=False)


def plain_ranges(model: ir.Model) -> Encodings:
    """The same range for every activation."""
    return Encodings(dict.fromkeys(activation_values(model, ()), (-1.0, 1.0)))


def test_a_keep_pattern_that_matches_nothing_is_an_error_with_near_names():
    with pytest.raises(RecipeError, match=r"'heads' matches no operator") as caught:
        quantize(
            residual(),
            Scheme.parse("static_wi8_ai8"),
            encodings=Encodings(keep=("heads",)),
            axes={},
        )
    assert "head" in caught.value.fix


def test_a_graph_with_nothing_to_quantise_is_refused_with_its_coverage():
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[1, 4] x) => (float[1, 4] y) { [act] a = Sigmoid (x) [soft] y = Softmax (a) }
    """
    with pytest.raises(UnsupportedError, match="quantised none of 2 operators") as caught:
        quantize(graph(text, {}), Scheme.parse("static_wi8_ai8"), encodings=PLAIN, axes={})
    assert set(caught.value.details["left_float"]) == {
        "Sigmoid: its int8 form costs accuracy and it is a small share of the work",
        "Softmax: its int8 form costs accuracy and it is a small share of the work",
    }


@pytest.mark.parametrize(
    "scheme", ["static_wi8_ai8", "dynamic_wi8_ai8", "weight_only_wi8", "weight_only_wi4_b32"]
)
def test_coverage_speaks_of_every_operator_that_computes(scheme):
    model = residual()
    _, coverage = quantize(model, Scheme.parse(scheme), encodings=plain_ranges(model), axes={"batch": 1})
    computing = {n.name for n in model.graph if n.op_type not in {"Flatten"}}
    assert {layer.name for layer in coverage.layers} == computing
    assert all(bool(layer.reason) != layer.quantized for layer in coverage.layers)
    head = next(layer for layer in coverage.layers if layer.name == "head")
    assert (head.macs, head.weight_bytes) == (30, 4 * (30 + 5))
    assert sum(layer.macs for layer in coverage.layers) == 8 * 8 * 8 * 27 + 8 * 8 * 8 * 9 + 8 * 8 * 6 * 8 + 30


BLOCK = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
    [left] a = Conv (x, w)
    [right] b = Conv (x, w)
    [sum] s = Add (a, b)
    [relu] r = Relu (s)
    [next] c = Conv (r, w)
    [again] t = Add (c, r)
    [relu2] q = Relu (t)
    [last] y = Conv (q, w)
}
"""


def test_a_residual_block_stays_in_int8_through_its_add_and_relu(tmp_path):
    model = graph(BLOCK, {"w": (4, 4, 1, 1)})
    feeds = {"x": RNG.normal(0, 1, (1, 4, 6, 6)).astype(np.float32)}
    outcome = quantize_static(model, Encodings(observed(model, feeds)), unsigned=False)
    assert outcome.quantized == {"left", "right", "sum", "relu", "next", "again", "relu2", "last"}
    operators = optimized_operators(outcome.model, tmp_path / "optimized.onnx", as_on_arm=True)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["Relu"]) == (4, 2, 0)
    assert sqnr_db(reference(model, feeds), run(outcome.model, feeds)) > 28

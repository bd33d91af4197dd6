"""Whether devices will agree: bounds against an emulated `vpmaddubsw` and brute force, gates against planted faults."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporter.artifacts import ArtifactSpec, to_plain
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.integers.products import largest_sums, pair_extremes
from exporter.quantize.quantize import quantize
from exporter.quantize.regions import activation_values
from exporter.schemes import Scheme
from exporter.stages.numerics import DeviceAgreement, examine, float16_overflow, numeric_gates

NETWORK = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 3, 8, 8] image) => (float[batch, 5] logits) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (image, w0, b0)
    [relu] r = Relu (a)
    [depthwise] c = Conv <pads = [1, 1, 1, 1], group = 8> (r, w1, b1)
    [wide] d = Conv (c, w2, b2)
    [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [head] logits = Gemm <transB = 1> (f, w3, b3)
}
"""
SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (40, 8, 1, 1), "b2": (40,), "w3": (5, 40),
    "b3": (5,),
}  # fmt: skip
ATTENTION = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 6, 16] tokens) => (float[batch, 6, 6] scores) {
    [query] q = MatMul (tokens, wq)
    [turn] t = Transpose <perm = [0, 2, 1]> (q)
    [scores] scores = MatMul (q, t)
}
"""


def float_model(
    text: str = NETWORK, shapes: dict[str, tuple[int, ...]] = SHAPES, **planted: np.ndarray
) -> ir.Model:
    rng = np.random.default_rng(3)
    proto = onnx.parser.parse_model(text)
    values = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()} | planted
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in values.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def quantized(model: ir.Model, scheme: str) -> ir.Model:
    ranges = dict.fromkeys(activation_values(model, ()), (-2.0, 3.0))
    made, _ = quantize(model, Scheme.parse(scheme), encodings=Encodings(ranges), axes={"batch": 1})
    return made


def examined(model: ir.Model, scheme: str) -> DeviceAgreement:
    return examine(quantized(model, scheme), Scheme.parse(scheme))


def vpmaddubsw(activations: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return what the instruction gives for u8 and s8 vectors of even length, and whether a lane saturated."""
    products = activations.astype(np.int32) * weights.astype(np.int32)
    exact = products[0::2] + products[1::2]
    held = np.clip(exact, -(2**15), 2**15 - 1)
    return held, bool((held != exact).any())


# --- 16-bit pair sums ------------------------------------------------------------------------------------


@given(arrays(np.int8, (1, 12), elements=st.integers(-127, 127)), st.integers(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_row_at_risk_is_one_that_the_instruction_can_saturate(rows: np.ndarray, start: int) -> None:
    low, high = pair_extremes(rows)
    says_safe = low[0] >= -(2**15) and high[0] <= 2**15 - 1
    saturated = False
    for shift in (0, 1):  # packing may start at either weight
        weights = np.concatenate([rows[0, shift:], np.zeros(shift, np.int8)])
        for extreme in (np.where(weights > 0, 255, 0), np.where(weights < 0, 255, 0)):
            saturated |= vpmaddubsw(extreme.astype(np.uint8), weights)[1]
    assert says_safe is not saturated
    shifted = np.concatenate([np.zeros(start, np.int8), rows[0], np.zeros(start, np.int8)])
    random = np.random.default_rng(0).integers(0, 256, len(shifted)).astype(np.uint8)
    held, _ = vpmaddubsw(random, shifted)
    assert not says_safe or (held.min() >= low[0] and held.max() <= high[0])


def test_pairs_are_found_across_the_whole_row_and_across_channels() -> None:
    rows = np.zeros((3, 9), np.int8)
    rows[0, [3, 4]] = 65, 64  # 255 · 129 = 32895
    rows[1, [7, 8]] = 64, 64  # 255 · 128 = 32640: the last that fits
    rows[2, [0, 1]] = -65, -64
    low, high = pair_extremes(rows)
    assert high.tolist() == [32895, 32640, 0]
    assert low.tolist() == [0, 0, -32895]


def test_an_im2col_order_with_channels_inside_is_looked_at_too() -> None:
    weight = np.zeros((40, 8, 2, 2), np.float32)
    weight[0, 0, 0, 0] = weight[0, 1, 0, 0] = 1.0  # neighbours only where channels are innermost
    model = float_model(w2=weight)
    findings = {p.layer: p for p in examined(model, "static_wi8_ai8_u").products}
    assert findings["wide"].pair_rows == 1
    assert findings["wide"].largest_pair == 255 * 254


def test_unsigned_schemes_name_layers_and_rows_and_signed_ones_say_why_not() -> None:
    model = float_model()
    unsigned, signed = examined(model, "static_wi8_ai8_u"), examined(model, "static_wi8_ai8")
    assert set(unsigned.pair_sums.layers_at_risk) == {"stem", "wide", "head"}
    assert unsigned.pair_sums.rows_at_risk > 0
    assert unsigned.pair_sums.rows == 8 + 40 + 5  # the depthwise kernel widens
    assert any("depthwise" in reason for reason in unsigned.pair_sums.reasons)
    assert "without VNNI" in unsigned.findings[0]
    assert signed.pair_sums.layers == 0
    assert "pmaddwd" in signed.pair_sums.reasons[0]
    assert not signed.findings


def test_weights_of_seven_bits_cannot_saturate() -> None:
    made = quantized(float_model(), "static_wi8_ai8_u")
    for value in made.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.INT8:
            value.const_value = ir.Tensor((value.const_value.numpy() // 2).astype(np.int8), name=value.name)
    agreement = examine(made, Scheme.parse("static_wi8_ai8_u"))
    assert agreement.pair_sums.rows_at_risk == 0
    assert 0 < agreement.pair_sums.largest <= 2**15
    assert "no 16-bit sum" in agreement.findings[0]


def test_dynamic_schemes_pair_uint8_with_int8_too() -> None:
    agreement = examined(float_model(), "dynamic_wi8_ai8")
    assert agreement.pair_sums.layers_at_risk == ("head/int32",)
    assert [p.op for p in agreement.products] == ["MatMulInteger"]


def test_blocks_are_bounded_by_their_form() -> None:
    made = quantized(float_model(), "weight_only_wi4_b32")
    block = next(node for node in made.graph if node.op_type == "MatMulNBits").attributes.get_int(
        "block_size"
    )
    agreement = examine(made, Scheme.parse("weight_only_wi4_b32"))
    (product,) = agreement.products
    assert (product.kernel, product.rows, product.depth) == ("blocks", 5, 40)
    assert product.largest_sum == block * 127 * 15
    assert agreement.pair_sums.layers == 0


# --- 32-bit accumulators ---------------------------------------------------------------------------------


@given(arrays(np.int8, (2, 6), elements=st.integers(-127, 127)), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_largest_sums_are_those_of_brute_force(rows: np.ndarray, zero_point: int) -> None:
    limits = (-zero_point, 255 - zero_point)
    extremes = np.array(list(itertools.product(limits, repeat=rows.shape[1])), np.int64)
    wanted = np.abs(extremes @ rows.T.astype(np.int64)).max(axis=0)
    assert largest_sums(rows, limits).tolist() == wanted.tolist()


def test_the_bound_holds_the_bias_and_the_zero_point_of_the_graph() -> None:
    made = quantized(float_model(), "static_wi8_ai8")
    head = next(p for p in examine(made, Scheme.parse("static_wi8_ai8")).products if p.layer == "head")
    node = next(node for node in made.graph if node.name == "head")
    data, weight, bias = ([i.const_value for i in v.producer().inputs] for v in node.inputs)  # type: ignore[union-attr]
    zero = int(data[2].numpy())
    integers, biases = weight[0].numpy().astype(np.int64), np.abs(bias[0].numpy().astype(np.int64))
    worst = 0
    for level in (-128 - zero, 127 - zero):
        other = 127 - zero if level < 0 else -128 - zero
        worst = max(
            worst,
            int((np.where(integers > 0, level, other) * integers).sum(1).__abs__().__add__(biases).max()),
        )
    assert head.largest_sum == worst
    assert head.headroom_bits == pytest.approx(np.log2((2**31 - 1) / worst))


def test_an_accumulator_that_overflows_fails_the_build() -> None:
    depth = 70_000  # 255 · 127 · 70 000 passes 2³¹
    text = f"""
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[batch, {depth}] x) => (float[batch, 2] y) {{ [deep] y = MatMul (x, w) }}
    """
    weight = np.ones((depth, 2), np.float32)
    weight[: depth // 2, 1] = 0.0
    model = float_model(text, {}, w=weight)
    made, _ = quantize(
        model, Scheme.parse("static_wi8_ai8"), encodings=Encodings({"x": (0.0, 1.0)}), axes={"batch": 1}
    )
    agreement = examine(made, Scheme.parse("static_wi8_ai8"))
    assert agreement.accumulators.rows_over == 1
    assert agreement.accumulators.largest == 255 * 127 * depth
    (failed,) = [g for g in numeric_gates(SPEC, agreement) if not g.passed]
    assert failed.gate == "int32 accumulators"
    assert "deep" in failed.unit
    assert agreement.findings


def test_a_product_of_activations_is_bounded_by_its_depth() -> None:
    agreement = examined(float_model(ATTENTION, {"wq": (16, 16)}), "static_wi8_ai8_u")
    scores = next(p for p in agreement.products if p.layer == "scores")
    assert scores.kernel == "u8u8"
    assert scores.depth == 16
    zero = round(2.0 / (5.0 / 255))
    assert scores.largest_sum == 16 * max(zero, 255 - zero) ** 2


# --- numbers that no device can use ----------------------------------------------------------------------

SPEC = ArtifactSpec.parse("onnx:static_wi8_ai8")


def scales_of(made: ir.Model) -> ir.Value:
    node = next(node for node in made.graph if node.name == "wide")
    value = node.inputs[1].producer().inputs[1]  # type: ignore[union-attr]
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("planted", "problem"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "not positive"), (-0.01, "not positive"),
     (1e-39, "subnormal")],
)  # fmt: skip
def test_a_planted_scale_is_named_and_fails(planted: float, problem: str) -> None:
    made = quantized(float_model(), "static_wi8_ai8")
    value = scales_of(made)
    scales = value.const_value.numpy().copy()  # type: ignore[union-attr]
    scales[17] = planted
    value.const_value = ir.Tensor(scales, name=value.name)
    agreement = examine(made, Scheme.parse("static_wi8_ai8"))
    (found,) = agreement.scales
    assert found.tensor == value.name
    assert found.index == (17,)
    assert problem in found.problem
    (failed,) = [g for g in numeric_gates(SPEC, agreement) if not g.passed]
    assert value.name in failed.unit
    json.dumps(to_plain(agreement), allow_nan=False)


@pytest.mark.parametrize(("end", "is_clipped"), [(2**31 - 1, True), (-(2**31), True), (2**31 - 2, False)])
def test_a_clipped_bias_is_named_and_fails(end: int, is_clipped: bool) -> None:
    made = quantized(float_model(), "static_wi8_ai8")
    node = next(node for node in made.graph if node.name == "stem")
    value = node.inputs[2].producer().inputs[0]  # type: ignore[union-attr]
    assert value is not None
    bias = value.const_value.numpy().copy()  # type: ignore[union-attr]
    bias[5] = end
    value.const_value = ir.Tensor(bias, name=value.name)
    agreement = examine(made, Scheme.parse("static_wi8_ai8"))
    assert [(found.layer, found.index) for found in agreement.biases] == (
        [("stem", (5,))] if is_clipped else []
    )
    failed = {g.gate for g in numeric_gates(SPEC, agreement) if not g.passed}
    assert ("int32 biases" in failed) is is_clipped


@pytest.mark.parametrize("scheme", ["static_wi8_ai8", "static_wi8_ai8_u", "dynamic_wi8_ai8", "weight_only_wi8",
                                    "weight_only_wi4_b32"])  # fmt: skip
def test_what_our_quantiser_writes_passes_every_gate(scheme: str) -> None:
    agreement = examined(float_model(b0=np.full(8, 3e7, np.float32)), scheme)
    assert agreement.products
    assert all(gate.passed for gate in numeric_gates(ArtifactSpec.parse(f"onnx:{scheme}"), agreement))
    json.dumps(to_plain(agreement), allow_nan=False)


def test_block_scales_may_be_negative_but_not_zero() -> None:
    made = quantized(float_model(), "weight_only_wi4_b32")
    value = next(v for v in made.graph.initializers.values() if v.dtype == ir.DataType.BFLOAT16)
    stored = value.const_value.numpy().astype(np.float32)  # type: ignore[union-attr]
    for planted, count in ((-0.5, 0), (0.0, 1)):
        stored[0, 0] = planted
        halves = (stored.view(np.uint32) >> 16).astype(np.uint16)
        value.const_value = ir.Tensor(halves, dtype=ir.DataType.BFLOAT16, name=value.name)
        assert len(examine(made, Scheme.parse("weight_only_wi4_b32")).scales) == count


def test_float16_overflow_finds_weights_and_activations() -> None:
    weight = np.full((5, 40), 65504.0, np.float32)
    model = float_model(w3=weight)
    assert float16_overflow(model, {"a": (-65504.0, 65504.0)}) == ()
    weight[2, 7] = -7e4
    found = float16_overflow(
        float_model(w3=weight),
        {"a": (-1.0, 65520.0), "c": (-np.inf, 0.0), "d": (0.0, 1.0), "e": (0.0, np.nan)},
    )
    assert [(f.tensor, f.layer, f.index) for f in found] == [
        ("w3", "head", (2, 7)), ("a", "activation", ()), ("c", "activation", ()), ("e", "activation", ()),
    ]  # fmt: skip
    spec = ArtifactSpec.parse("tflite:float16")
    (failed,) = [g for g in numeric_gates(spec, examine(model, spec.scheme), found) if not g.passed]
    assert "w3 at (2, 7) of head = -70000" in failed.unit

"""Dynamic int8: the arithmetic, the form onnxruntime fuses, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from quantize_graphs import executed, graph, node, run, serialized, sqnr_db, weights

from exporter.quantize.dynamic import STORED_ONLY, quantize_dynamic
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.integers.rewrite import array_of
from exporter.quantize.integers.weights import dequantize_per_channel, quantize_per_channel

RNG_SEED = 3
OPSETS = [13, 17, 18, 21]


def perceptron(opset: int = 18) -> ir.Model:
    """48 → Gemm(transB) → Relu → MatMul → Add → 7."""
    return graph(
        [
            node("Gemm", ["x", "first.weight", "first.bias"], "hidden", transB=1),
            node("Relu", ["hidden"], "active"),
            node("MatMul", ["active", "second.weight"], "product"),
            node("Add", ["product", "second.bias"], "y"),
        ],
        {"x": (np.float32, ("batch", 48))},
        ["y"],
        {
            "first.weight": weights((64, 48), 1),
            "first.bias": weights((64,), 2),
            "second.weight": weights((64, 7), 3),
            "second.bias": weights((7,), 4),
        },
        opset,
    )


def attention_block() -> ir.Model:
    """Queries, keys and values of one activation, as products with constants."""
    names = ("query", "key", "value")
    products = [node("MatMul", ["x", f"{name}.weight"], name) for name in names]
    return graph(
        [
            *products,
            node("Transpose", ["key"], "key_t", perm=[0, 2, 1]),
            node("MatMul", ["query", "key_t"], "scores"),
            node("Softmax", ["scores"], "shares"),
            node("MatMul", ["shares", "value"], "y"),
        ],
        {"x": (np.float32, ("batch", "sequence", 32))},
        ["y"],
        {f"{name}.weight": weights((32, 32), seed) for seed, name in enumerate(names)},
    )


def sample(*shape: int, seed: int = RNG_SEED) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dynamic_product(data: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return data · rowsᵀ as DynamicQuantizeLinear (ONNX specification) and int8 rows compute it."""
    low, high = min(data.min(), 0.0), max(data.max(), 0.0)
    scale = np.float32((high - low) / 255)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    rounded = (np.clip(np.rint(data / scale) + zero_point, 0, 255) - zero_point) * scale
    restored = dequantize_per_channel(*quantize_per_channel(rows, 0), axis=0)
    product: NDArray[np.float32] = rounded @ restored.T
    return product


@pytest.mark.parametrize("opset", OPSETS)
def test_a_perceptron_computes_what_the_specification_says(opset: int) -> None:
    model = perceptron(opset)
    outcome = quantize_dynamic(model)
    assert outcome.quantized == {"hidden/Gemm", "product/MatMul"}
    assert outcome.reasons == {}
    constants = {name: array_of(value) for name, value in model.graph.initializers.items()}
    x = sample(5, 48)
    hidden = np.maximum(dynamic_product(x, constants["first.weight"]) + constants["first.bias"], 0)
    expected = dynamic_product(hidden, constants["second.weight"].T) + constants["second.bias"]
    np.testing.assert_allclose(
        run(outcome.model, {"x": x}), expected, rtol=0, atol=2e-3 * np.abs(expected).max()
    )
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 35


def test_a_lone_product_runs_as_one_kernel(tmp_path: Path) -> None:
    operators = executed(quantize_dynamic(perceptron()).model, tmp_path)
    assert operators == {"DynamicQuantizeMatMul": 2, "Relu": 1}


def test_products_of_one_activation_share_its_quantisation(tmp_path: Path) -> None:
    model = attention_block()
    outcome = quantize_dynamic(model)
    operators = executed(outcome.model, tmp_path)
    assert operators["DynamicQuantizeLinear"] == 1
    assert operators["MatMulIntegerToFloat"] == 3
    assert operators["MatMulInteger"] == 0
    assert outcome.quantized == {"query/MatMul", "key/MatMul", "value/MatMul"}
    assert outcome.reasons == dict.fromkeys(["scores/MatMul", "y/MatMul"], "multiplies two activations")
    x = sample(2, 9, 32)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 30


GEMMS: list[dict[str, Any]] = [
    {"transA": 0, "transB": 0, "bias": (6,)},
    {"transA": 1, "transB": 0, "bias": (6,)},
    {"transA": 1, "transB": 1, "bias": None},
    {"transA": 0, "transB": 1, "bias": (1, 6), "alpha": 0.5, "beta": 2.0},
    {"transA": 1, "transB": 1, "bias": (5, 6), "alpha": -1.5},
    {"transA": 0, "transB": 1, "bias": (6,), "beta": 0.0},
    {"transA": 0, "transB": 0, "bias": ()},
]


def gemm(case: dict[str, Any], *, computed_bias: bool = False) -> ir.Model:
    case = dict(case)
    shape = case.pop("bias")
    constants = {"w": weights((6, 40) if case["transB"] else (40, 6))}
    inputs: dict[str, tuple[type, tuple[int | str, ...]]] = {
        "x": (np.float32, (40, 5) if case["transA"] else (5, 40))
    }
    names = ["x", "w"]
    if shape is not None:
        names.append("c")
        if computed_bias:
            inputs["c"] = (np.float32, shape)
        else:
            constants["c"] = sample(*shape, seed=9) if shape else np.asarray(0.7, np.float32)
    return graph([node("Gemm", names, "y", **case)], inputs, ["y"], constants)


@pytest.mark.parametrize("case", GEMMS, ids=str)
def test_every_form_of_gemm(case: dict[str, Any]) -> None:
    model = gemm(case)
    outcome = quantize_dynamic(model)
    assert outcome.quantized == {"y/Gemm"}
    x = sample(40, 5) if case["transA"] else sample(5, 40)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 33


def test_a_bias_computed_at_run_time_is_scaled_too() -> None:
    model = gemm({"transA": 0, "transB": 0, "bias": (6,), "beta": 3.0}, computed_bias=True)
    outcome = quantize_dynamic(model)
    feed = {"x": sample(5, 40), "c": sample(6)}
    assert sqnr_db(run(model, feed), run(outcome.model, feed)) > 33


def test_two_transposed_readers_of_one_activation() -> None:
    model = graph(
        [
            node("Gemm", ["x", "v"], "a", transA=1),
            node("Gemm", ["x", "w"], "b"),
            node("Add", ["a", "b"], "y"),
        ],
        {"x": (np.float32, (24, 24))},
        ["y"],
        {"v": weights((24, 24), 1), "w": weights((24, 24), 2)},
    )
    outcome = quantize_dynamic(model)
    x = sample(24, 24)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 33


def test_a_weight_that_two_products_read_is_stored_once() -> None:
    model = graph(
        [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "r"), node("MatMul", ["r", "w"], "y")],
        {"x": (np.float32, ("batch", 128))},
        ["y"],
        {"w": weights((128, 128))},
    )
    outcome = quantize_dynamic(model)
    assert len(serialized(outcome.model)) < 1.25 * 128 * 128
    x = sample(3, 128)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 30


def test_outputs_keep_their_names_and_shapes() -> None:
    model = perceptron()
    outcome = quantize_dynamic(model)
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]
    assert str(outcome.model.graph.outputs[0].shape) == str(model.graph.outputs[0].shape)
    product_is_output = graph(
        [node("MatMul", ["x", "w"], "y"), node("Relu", ["y"], "z")],
        {"x": (np.float32, ("batch", 16))},
        ["y", "z"],
        {"w": weights((16, 8))},
    )
    quantized = quantize_dynamic(product_is_output).model
    assert [value.name for value in quantized.graph.outputs] == ["y", "z"]
    assert sqnr_db(run(product_is_output, {"x": sample(2, 16)}), run(quantized, {"x": sample(2, 16)})) > 30


def test_the_given_model_is_not_changed() -> None:
    for model in (perceptron(), attention_block(), convolutions()):
        before = serialized(model)
        quantize_dynamic(model)
        assert serialized(model) == before


def test_the_same_model_gives_the_same_bytes() -> None:
    assert serialized(quantize_dynamic(attention_block()).model) == serialized(
        quantize_dynamic(attention_block()).model
    )


def test_kept_operators_stay_float() -> None:
    model = perceptron()
    outcome = quantize_dynamic(model, Encodings(keep=("hidden*",)))
    assert outcome.quantized == {"product/MatMul"}
    assert outcome.reasons == {"hidden/Gemm": "kept in float by the recipe"}
    everything = quantize_dynamic(model, Encodings(keep=("*",)))
    assert everything.quantized == frozenset()
    assert serialized(everything.model) == serialized(model)


def test_what_has_no_int8_form_is_left_with_a_reason() -> None:
    model = graph(
        [
            node("MatMul", ["left", "x"], "a"),
            node("MatMul", ["x", "stack"], "b"),
            node("Gather", ["x", "index"], "row", axis=0),
            node("MatMul", ["row", "w"], "c"),
            node("Add", ["a", "c"], "d"),
            node("ReduceSum", ["b"], "total", keepdims=0),
            node("Add", ["d", "total"], "y"),
        ],
        {"x": (np.float32, (8, 8))},
        ["y"],
        {
            "left": weights((8, 8)),
            "stack": weights((2, 8, 8)),
            "w": weights((8, 8)),
            "index": np.asarray(1, np.int64),
        },
    )
    outcome = quantize_dynamic(model)
    assert outcome.quantized == frozenset()
    assert outcome.reasons == {
        "a/MatMul": "its first operand is the constant",
        "b/MatMul": "its constant operand is not a matrix",
        "row/Gather": "selects from an activation: nothing to quantise",
        "c/MatMul": "its activation is a vector",
    }


def test_a_sum_that_may_overflow_stays_float() -> None:
    depth = 70_000
    model = graph(
        [node("MatMul", ["x", "w"], "y")], {"x": (np.float32, (1, depth))}, ["y"], {"w": weights((depth, 1))}
    )
    assert quantize_dynamic(model).reasons == {"y/MatMul": f"sums of {depth} products may overflow int32"}


def convolutions() -> ir.Model:
    """A convolution, a depthwise one, a transposed one, and one too small to matter."""
    return graph(
        [
            node("Conv", ["x", "plain", "bias"], "a", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], "r"),
            node("Conv", ["r", "depthwise"], "b", group=64, pads=[2, 2, 2, 2]),
            node("ConvTranspose", ["b", "transposed"], "c", strides=[2, 2]),
            node("Conv", ["c", "tiny"], "y"),
        ],
        {"x": (np.float32, ("batch", 3, 12, 12))},
        ["y"],
        {
            "plain": weights((64, 3, 3, 3), 1),
            "bias": weights((64,), 2),
            "depthwise": weights((64, 1, 5, 5), 3),
            "transposed": weights((64, 32, 2, 2), 4),
            "tiny": weights((2, 32, 1, 1), 5),
        },
    )


def test_convolutions_are_stored_small_and_computed_in_float(tmp_path: Path) -> None:
    model = convolutions()
    outcome = quantize_dynamic(model)
    assert outcome.quantized == frozenset()
    small = "its weights are too few for int8 to make the file smaller"
    names = {"a/Conv": STORED_ONLY, "b/Conv": STORED_ONLY, "c/ConvTranspose": STORED_ONLY, "y/Conv": small}
    assert outcome.reasons == names
    assert len(serialized(outcome.model)) < 0.4 * len(serialized(model))
    x = sample(1, 3, 12, 12)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 35
    before, after = executed(model, tmp_path), executed(outcome.model, tmp_path)
    assert before == after  # what restores the weights is folded when the file is loaded


def test_a_kept_convolution_keeps_its_weights() -> None:
    outcome = quantize_dynamic(convolutions(), Encodings(keep=("a", "c/*")))
    assert outcome.reasons["a/Conv"] == outcome.reasons["c/ConvTranspose"] == "kept in float by the recipe"
    assert outcome.reasons["b/Conv"] == STORED_ONLY
    names = outcome.model.graph.initializers
    assert {"plain", "transposed"} <= set(names)
    assert "depthwise" not in names


def test_a_weight_that_a_branch_reads_too_survives() -> None:
    """Operators inside If and Loop are not touched, and what they read from outside stays."""
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node(op, ["w"], [kind], name=f"{kind}/{op}")],
            kind,
            [],
            [helper.make_tensor_value_info(kind, TensorProto.FLOAT, (16, 16))],
        )
        for kind, op in (("then", "Neg"), ("else", "Abs"))
    }
    model = graph(
        [
            node("MatMul", ["x", "w"], "a"),
            node("ReduceSum", ["a"], "total", keepdims=0),
            node("Cast", ["total"], "flag", to=TensorProto.BOOL),
            node("If", ["flag"], "chosen", **branches),
            node("Add", ["a", "chosen"], "y"),
        ],
        {"x": (np.float32, (16, 16))},
        ["y"],
        {"w": weights((16, 16))},
    )
    outcome = quantize_dynamic(model)
    assert outcome.quantized == {"a/MatMul"}
    x = sample(16, 16)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 30

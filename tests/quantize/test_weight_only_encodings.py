"""Weight-only schemes with decisions made elsewhere: settled integers, mixed widths, int4 convolutions; fused kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantize_graphs import executed, graph, node, run, serialized, sqnr_db, weights
from test_dynamic import convolutions, sample
from test_embedding_tables import ids, language_model

from exporter.errors import InputError, InternalError
from exporter.model.onnx_write import save_onnx
from exporter.quantize.integers.encodings import ChannelWeight, Encodings
from exporter.quantize.integers.stored import NOT_SMALLER_IN_FOUR
from exporter.quantize.integers.weights import (
    Blocks,
    dequantize_blocks,
    dequantize_per_channel,
    quantize_blocks,
    quantize_per_channel,
)
from exporter.quantize.weight_only import quantize_weight_only
from exporter.runtimes.optimized import executed_operators, fused_kernels

DEPTH, WIDTH = 256, 48


def pair(opset: int = 18) -> ir.Model:
    """Return Gemm → Relu → MatMul over rows of 256."""
    return graph(
        [
            node("Gemm", ["x", "w0", "b0"], "h", transB=1),
            node("Relu", ["h"], "r"),
            node("MatMul", ["r", "w1"], "y"),
        ],
        {"x": (np.float32, ("batch", DEPTH))},
        ["y"],
        {"w0": weights((DEPTH, DEPTH)), "b0": weights((DEPTH,)), "w1": weights((DEPTH, WIDTH), 1)},
        opset,
    )


def stored(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def kernels(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Return (bits, block size) of each MatMulNBits by the weight it reads."""
    return {
        item.inputs[1].name: (item.attributes.get_int("bits"), item.attributes.get_int("block_size"))
        for item in model.graph
        if item.op_type == "MatMulNBits"
    }


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_gemm_and_matmul_run_in_the_fused_kernel_at_every_block(
    block: int, opset: int, tmp_path: Path
) -> None:
    outcome = quantize_weight_only(pair(opset), 4, block)
    path = tmp_path / "pair.onnx"
    save_onnx(outcome.model, path)
    assert fused_kernels(path) == {"MatMulNBits": 2}
    assert set(executed_operators(path)) <= {
        "MatMulNBits",
        "Relu",
        "Add",
    }  # every Cast and Transpose is folded
    assert set(kernels(outcome.model).values()) == {(4, block)}


@pytest.mark.parametrize("tie", ["transposed", "folded", "gemm"])
@pytest.mark.parametrize("block", [32, 64])
def test_a_tied_table_is_stored_once_and_runs_in_both_kernels(tie: str, block: int, tmp_path: Path) -> None:
    outcome = quantize_weight_only(language_model(tie), 4, block)
    path = tmp_path / "tied.onnx"
    save_onnx(outcome.model, path)
    assert fused_kernels(path) == {"GatherBlockQuantized": 1, "MatMulNBits": 1}
    packed = [v for v in outcome.model.graph.initializers.values() if v.name.endswith("/int4")]
    assert len(packed) == 1


def test_settled_blocks_are_written_as_they_are() -> None:
    model = pair()
    chosen = quantize_blocks(weights((DEPTH, DEPTH)), 64, 4)
    chosen = Blocks(chosen.packed ^ np.uint8(0x11), chosen.scales, chosen.zero_points, 4, chosen.columns)
    by_columns = quantize_blocks(weights((DEPTH, WIDTH), 1).T, 64, 4, symmetric=True)
    outcome = quantize_weight_only(model, 4, 64, Encodings(blocks={"w0": chosen, "w1": by_columns}))
    np.testing.assert_array_equal(stored(outcome.model, "w0/int4"), chosen.packed)
    np.testing.assert_array_equal(stored(outcome.model, "w1/int4"), by_columns.packed)
    x = sample(4, DEPTH)
    hidden = np.maximum(x @ dequantize_blocks(chosen).T + weights((DEPTH,)), 0)
    assert sqnr_db(hidden @ dequantize_blocks(by_columns).T, run(outcome.model, {"x": x})) > 36


def test_settled_blocks_of_another_width_or_shape() -> None:
    eight = quantize_blocks(weights((DEPTH, DEPTH)), 64, 8, symmetric=True)
    model = quantize_weight_only(pair(), 4, 64, Encodings(blocks={"w0": eight})).model
    assert stored(model, "w0/int4").shape == (DEPTH, 4, 32)  # fitted anew: the scheme has four bits
    narrow = quantize_blocks(weights((DEPTH, 64)), 64, 4)
    with pytest.raises(InternalError, match=r"chosen for w0 have shape \(256, 64\), its rows \(256, 256\)"):
        quantize_weight_only(pair(), 4, 64, Encodings(blocks={"w0": narrow}))


def test_settled_channels_are_written_as_they_are() -> None:
    integers, scales = quantize_per_channel(weights((DEPTH, DEPTH)), 0)
    coarse = ChannelWeight(np.clip(integers, -60, 60), scales, 0)
    columns, column_scales = quantize_per_channel(weights((DEPTH, WIDTH), 1), 1)
    by_column = ChannelWeight(np.clip(columns, -90, 90), column_scales, 1)
    outcome = quantize_weight_only(pair(), 8, None, Encodings(channels={"w0": coarse, "w1": by_column}))
    x = sample(4, DEPTH)
    hidden = np.maximum(x @ dequantize_per_channel(coarse.integers, scales, 0).T + weights((DEPTH,)), 0)
    expected = hidden @ dequantize_per_channel(by_column.integers, column_scales, 1)
    assert sqnr_db(expected, run(outcome.model, {"x": x})) > 36


def test_widths_may_be_mixed(tmp_path: Path) -> None:
    model, x = pair(), sample(8, DEPTH)
    reference = run(model, {"x": x})
    four = quantize_weight_only(model, 4, 64)
    mixed = quantize_weight_only(model, 4, 64, Encodings(bits={"h/Gemm": 8}))
    eight = quantize_weight_only(model, 4, 64, Encodings(bits={"h/Gemm": 8, "y/MatMul": 8}))
    assert kernels(mixed.model) == {"w0/int8": (8, 64), "w1/int4": (4, 64)}
    assert mixed.quantized == four.quantized == {"h/Gemm", "y/MatMul"}
    sizes = [len(serialized(outcome.model)) for outcome in (four, mixed, eight)]
    scores = [sqnr_db(reference, run(outcome.model, {"x": x})) for outcome in (four, mixed, eight)]
    assert sizes == sorted(sizes) and scores == sorted(scores)
    assert scores[2] > 36
    assert executed(mixed.model, tmp_path)["MatMulNBits"] == 2


@pytest.mark.parametrize("named", ["row/Gather", "logits/MatMul"])
def test_a_tied_table_has_the_width_of_the_reader_that_needs_more(named: str) -> None:
    outcome = quantize_weight_only(language_model("transposed"), 4, 32, Encodings(bits={named: 8}))
    widths = {
        item.attributes.get_int("bits")
        for item in outcome.model.graph
        if item.op_type in {"MatMulNBits", "GatherBlockQuantized"}
    }
    assert widths == {8}
    tokens = ids(5)
    float_model = language_model("transposed")
    assert sqnr_db(run(float_model, {"ids": tokens}), run(outcome.model, {"ids": tokens})) > 34


# -- convolutions stored in four bits --


def wide_convolutions() -> ir.Model:
    """Return Conv 3×3 over 24 channels (rows of 216), a depthwise one, and a pointwise one of odd width."""
    return graph(
        [
            node("Conv", ["x", "w0"], "a", pads=[1, 1, 1, 1]),
            node("Conv", ["a", "w1"], "b", pads=[1, 1, 1, 1], group=96),
            node("Conv", ["b", "w2", "b2"], "y"),
        ],
        {"x": (np.float32, ("batch", 24, 10, 10))},
        ["y"],
        {
            "w0": weights((96, 24, 3, 3)), "w1": weights((96, 1, 3, 3), 1), "w2": weights((193, 96, 1, 1), 2),
            "b2": weights((193,), 3),
        },
    )  # fmt: skip


ASKED = Encodings(bits={"a/Conv": 4, "b/Conv": 4, "y/Conv": 4})


@pytest.mark.parametrize("block", [32, 64, 128])
def test_asked_for_convolutions_are_int4_and_folded_when_loaded(block: int, tmp_path: Path) -> None:
    model, x = wide_convolutions(), sample(1, 24, 10, 10)
    default = quantize_weight_only(model, 4, block)
    four = quantize_weight_only(model, 4, block, ASKED)
    assert four.quantized == {"a/Conv", "y/Conv"}
    assert four.reasons == {"b/Conv": NOT_SMALLER_IN_FOUR}
    assert executed(four.model, tmp_path) == executed(model, tmp_path)
    assert len(serialized(four.model)) < 0.72 * len(serialized(default.model))
    assert sqnr_db(run(model, {"x": x}), run(four.model, {"x": x})) > 15


def test_settled_blocks_of_a_convolution_are_used(tmp_path: Path) -> None:
    rows = weights((96, 24, 3, 3)).reshape(96, -1)
    chosen = quantize_blocks(rows, 64, 4, symmetric=True)
    model, x = wide_convolutions(), sample(1, 24, 10, 10)
    outcome = quantize_weight_only(model, 4, 32, Encodings(bits={"a/Conv": 4}, blocks={"w0": chosen}))
    exact = wide_convolutions()
    exact.graph.initializers["w0"].const_value = ir.tensor(
        dequantize_blocks(chosen).reshape(96, 24, 3, 3), name="w0"
    )
    eight = quantize_weight_only(exact, 8, None).model
    assert sqnr_db(run(exact, {"x": x}), run(outcome.model, {"x": x})) > 38
    assert sqnr_db(run(eight, {"x": x}), run(outcome.model, {"x": x})) > 38


def test_a_convolution_that_int4_does_not_shrink_says_so() -> None:
    model = graph(
        [node("Conv", ["x", "w"], "y", pads=[1, 1, 1, 1], group=512)],
        {"x": (np.float32, (1, 512, 4, 4))},
        ["y"],
        {"w": weights((512, 1, 3, 3))},
    )
    outcome = quantize_weight_only(model, 4, 32, Encodings(bits={"y/Conv": 4}))
    assert outcome.reasons == {"y/Conv": NOT_SMALLER_IN_FOUR}
    x = sample(1, 512, 4, 4)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 36  # stored as int8 all the same


def test_int4_is_not_for_convolutions_of_an_int8_scheme() -> None:
    given = Encodings(bits={"a/Conv": 4})
    plain = serialized(quantize_weight_only(convolutions(), 8, None).model)
    assert serialized(quantize_weight_only(convolutions(), 8, None, given).model) == plain


# -- what is executed --


def test_a_float_file_has_no_integer_kernels(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    save_onnx(pair(), path)
    assert fused_kernels(path) == {}
    assert executed_operators(path)["MatMul"] == 1


def test_a_file_that_does_not_load_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(InputError, match=r"cannot load .*broken\.onnx"):
        executed_operators(path)

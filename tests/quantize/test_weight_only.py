"""Weight-only int8 and int4: exact weights in the kernel, shapes of all kinds, and the size of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from quantize_graphs import executed, graph, node, run, serialized, sqnr_db, weights
from test_dynamic import GEMMS, OPSETS, attention_block, convolutions, gemm, perceptron, sample

from exporter.errors import UsageError
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.integers.weights import (
    dequantize_blocks,
    dequantize_per_channel,
    kernel_block,
    quantize_blocks,
    quantize_per_channel,
)
from exporter.quantize.weight_only import INT8_CONVOLUTION, quantize_weight_only

FORMS: list[tuple[int, int | None]] = [(8, None), (8, 32), (4, 16), (4, 32), (4, 64), (4, 128)]
KERNEL_NOISE_DB = 36
"""The kernel rounds activations to int8 block by block: its answer is this close to exact products at least."""


def product(depth: int, columns: int, opset: int = 18) -> ir.Model:
    return graph(
        [node("MatMul", ["x", "w"], "y")],
        {"x": (np.float32, ("batch", "sequence", depth))},
        ["y"],
        {"w": weights((depth, columns))},
        opset,
    )


def restored(rows: NDArray[np.float32], bits: int, block_size: int | None) -> NDArray[np.float32]:
    """Return the weights `[N, K]` as they come out of storage."""
    if block_size is None:
        return dequantize_per_channel(*quantize_per_channel(rows, 0), axis=0)
    fitting = kernel_block(rows.shape[1], block_size)
    return dequantize_blocks(quantize_blocks(rows, fitting, bits, symmetric=bits == 8))


@pytest.mark.parametrize(("bits", "block_size"), FORMS)
@pytest.mark.parametrize(("depth", "columns"), [(256, 48), (100, 33), (3, 5), (130, 1), (768, 16)])
def test_the_kernel_multiplies_by_the_stored_weights(
    bits: int, block_size: int | None, depth: int, columns: int, tmp_path: Path
) -> None:
    model = product(depth, columns)
    outcome = quantize_weight_only(model, bits, block_size)
    assert outcome.quantized == {"y/MatMul"}
    x = sample(2, 5, depth)
    expected = x @ restored(weights((depth, columns)).T, bits, block_size).T
    assert sqnr_db(expected, run(outcome.model, {"x": x})) > KERNEL_NOISE_DB
    assert executed(outcome.model, tmp_path) == {"MatMulNBits": 1}  # Expand and Cast are folded


@pytest.mark.parametrize(("bits", "block_size"), FORMS)
def test_the_kernel_may_compute_in_integers(bits: int, block_size: int | None) -> None:
    """Without accuracy_level 4 onnxruntime multiplies in float, slower than the float model."""
    (kernel,) = (
        item
        for item in quantize_weight_only(product(64, 8), bits, block_size).model.graph
        if item.op_type == "MatMulNBits"
    )
    assert kernel.domain == "com.microsoft"
    assert kernel.attributes.get_int("accuracy_level") == 4
    assert kernel.attributes.get_int("bits") == bits


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("bits", "block_size", "floor_db"), [(8, None, 36), (4, 32, 17), (4, 64, 15)])
def test_a_perceptron_stays_close_to_float(
    opset: int, bits: int, block_size: int | None, floor_db: float
) -> None:
    model = perceptron(opset)
    outcome = quantize_weight_only(model, bits, block_size)
    assert outcome.quantized == {"hidden/Gemm", "product/MatMul"}
    x = sample(16, 48)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > floor_db


@pytest.mark.parametrize("case", GEMMS, ids=str)
@pytest.mark.parametrize(("bits", "block_size", "floor_db"), [(8, None, 34), (4, 32, 14)])
def test_every_form_of_gemm(case: dict[str, Any], bits: int, block_size: int | None, floor_db: float) -> None:
    model = gemm(case)
    outcome = quantize_weight_only(model, bits, block_size)
    assert outcome.quantized == {"y/Gemm"}
    x = sample(40, 5) if case["transA"] else sample(5, 40)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > floor_db


def test_bytes_a_weight() -> None:
    """8 bits per channel cost a byte; blocks of 4 bits add a bfloat16 scale and half a byte of zero point."""
    count = 1024 * 512
    model = product(1024, 512)
    sizes = {form: 8 * len(serialized(quantize_weight_only(model, *form).model)) / count for form in FORMS}
    assert sizes[8, None] == pytest.approx(8 + 32 / 1024, abs=0.03)
    assert sizes[4, 32] == pytest.approx(4 + 20 / 32, abs=0.03)
    assert sizes[4, 128] == pytest.approx(4 + 20 / 128, abs=0.03)


def test_more_bytes_lose_less() -> None:
    model = product(512, 64)
    x = sample(1, 32, 512)
    reference = run(model, {"x": x})
    scores = [
        sqnr_db(reference, run(quantize_weight_only(model, bits, block).model, {"x": x}))
        for bits, block in [(4, 128), (4, 64), (4, 32), (8, None)]
    ]
    assert scores == sorted(scores)
    assert scores[-1] > 36


def test_products_of_two_activations_have_no_weights() -> None:
    model = attention_block()
    for bits, block_size in ((8, None), (4, 32)):
        outcome = quantize_weight_only(model, bits, block_size)
        assert outcome.quantized == {"query/MatMul", "key/MatMul", "value/MatMul"}
        assert outcome.reasons == dict.fromkeys(["scores/MatMul", "y/MatMul"], "multiplies two activations")


def test_int8_convolutions_are_stored_per_channel(tmp_path: Path) -> None:
    model = convolutions()
    outcome = quantize_weight_only(model, 8, None)
    assert outcome.quantized == {"a/Conv", "b/Conv", "c/ConvTranspose"}
    assert set(outcome.reasons) == {"y/Conv"}
    x = sample(1, 3, 12, 12)
    assert sqnr_db(run(model, {"x": x}), run(outcome.model, {"x": x})) > 35
    assert executed(model, tmp_path) == executed(outcome.model, tmp_path)


def test_int4_convolutions_are_said_to_be_int8() -> None:
    outcome = quantize_weight_only(convolutions(), 4, 32)
    assert outcome.quantized == frozenset()
    assert outcome.reasons["a/Conv"] == INT8_CONVOLUTION


def test_the_given_model_is_not_changed_and_the_answer_repeats() -> None:
    for model in (perceptron(), attention_block(), convolutions()):
        before = serialized(model)
        first = serialized(quantize_weight_only(model, 4, 32).model)
        assert serialized(model) == before
        assert serialized(quantize_weight_only(model, 4, 32).model) == first


def test_kept_operators_stay_float() -> None:
    model = perceptron()
    outcome = quantize_weight_only(model, 4, 32, Encodings(keep=("product/*",)))
    assert outcome.quantized == {"hidden/Gemm"}
    assert outcome.reasons == {"product/MatMul": "kept in float by the recipe"}
    assert quantize_weight_only(model, 8, None, Encodings(keep=("*",))).quantized == frozenset()


@pytest.mark.parametrize(("bits", "block_size"), [(4, None), (3, 32), (4, 48)])
def test_a_form_without_a_kernel_is_refused(bits: int, block_size: int | None) -> None:
    with pytest.raises(UsageError, match=r"4 bits|16, 32, 64"):
        quantize_weight_only(perceptron(), bits, block_size)


@pytest.mark.parametrize(
    ("depth", "block"),
    [(768, 256), (3072, 256), (384, 128), (1000, 256), (400, 16), (3, 16), (1, 16), (64, 64)],
)
def test_kernel_blocks_are_large_without_padding_much(depth: int, block: int) -> None:
    assert kernel_block(depth) == block

"""Embedding tables: looked up as integers, and stored once when an output head reads them too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from quantize_graphs import graph, node, run, serialized, sqnr_db, weights

from exporter.quantize.dynamic import quantize_dynamic
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.integers.outcome import Outcome
from exporter.quantize.integers.tables import quantize_tables, tie_tables
from exporter.quantize.integers.weights import (
    dequantize_blocks,
    dequantize_per_channel,
    quantize_blocks,
    quantize_per_channel,
)
from exporter.quantize.weight_only import quantize_weight_only

ROWS = 500
Quantizer = Callable[..., Outcome]


def dynamic(model: ir.Model, keep: tuple[str, ...] = ()) -> Outcome:
    return quantize_dynamic(model, Encodings(keep=keep))


def int8(model: ir.Model, keep: tuple[str, ...] = ()) -> Outcome:
    return quantize_weight_only(model, 8, None, Encodings(keep=keep))


def int8_blocks(model: ir.Model, keep: tuple[str, ...] = ()) -> Outcome:
    return quantize_weight_only(model, 8, 32, Encodings(keep=keep))


def int4(model: ir.Model, keep: tuple[str, ...] = ()) -> Outcome:
    return quantize_weight_only(model, 4, 32, Encodings(keep=keep))


QUANTIZERS = [dynamic, int8, int8_blocks, int4]
BITS_A_WEIGHT = {dynamic: 8.4, int8: 8.4, int8_blocks: 8.7, int4: 4.8}


def restored(table: NDArray[np.float32], quantizer: Quantizer) -> NDArray[np.float32]:
    """Return the table as it comes out of storage."""
    if quantizer in (dynamic, int8):
        return dequantize_per_channel(*quantize_per_channel(table, 0), axis=0)
    bits = 4 if quantizer is int4 else 8
    return dequantize_blocks(quantize_blocks(table, 32, bits, symmetric=bits == 8))


def ids(*shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, ROWS, shape)


def embedding(width: int, rows: int = ROWS, opset: int = 18) -> ir.Model:
    return graph(
        [node("Gather", ["table", "ids"], "row"), node("Relu", ["row"], "y")],
        {"ids": (np.int64, ("batch", "sequence"))},
        ["y"],
        {"table": weights((rows, width))},
        opset,
    )


def language_model(tie: str, width: int = 64) -> ir.Model:
    """Token ids → embedding → Relu → logits over the same tokens, in the ways exporters write a tied head."""
    table = weights((ROWS, width))
    constants = {"table": table}
    before = []
    match tie:
        case "transposed":
            before = [node("Transpose", ["table"], "table_t", perm=[1, 0])]
            head = node("MatMul", ["hidden", "table_t"], "logits")
        case "folded":
            constants["table_t"] = np.ascontiguousarray(table.T)
            head = node("MatMul", ["hidden", "table_t"], "logits")
        case "gemm":
            head = node("Gemm", ["hidden", "table"], "logits", transB=1)
        case "gemm copy":
            constants["copy"] = np.ascontiguousarray(table.T)
            head = node("Gemm", ["hidden", "copy"], "logits", transB=0)
        case _:
            constants["other"] = weights((width, ROWS), seed=8)
            head = node("MatMul", ["hidden", "other"], "logits")
    return graph(
        [*before, node("Gather", ["table", "ids"], "row"), node("Relu", ["row"], "hidden"), head],
        {"ids": (np.int64, ("tokens",))},
        ["logits"],
        constants,
    )


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("width", [64, 50])
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_rows_come_back_as_they_were_stored(quantizer: Quantizer, width: int, opset: int) -> None:
    outcome = quantizer(embedding(width, opset=opset))
    assert outcome.quantized == {"row/Gather"}
    assert outcome.reasons == {}
    wanted = ids(3, 7)
    expected = np.maximum(restored(weights((ROWS, width)), quantizer)[wanted], 0)
    np.testing.assert_allclose(run(outcome.model, {"ids": wanted}), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("tie", ["transposed", "folded", "gemm", "gemm copy"])
@pytest.mark.parametrize("width", [64, 50])
def test_a_tied_table_is_stored_once_and_read_by_both(quantizer: Quantizer, tie: str, width: int) -> None:
    model = language_model(tie, width)
    outcome = quantizer(model)
    assert outcome.quantized == {"row/Gather", "logits/Gemm" if tie.startswith("gemm") else "logits/MatMul"}
    padded = -(-width // 32) * 32 if quantizer in (int4, int8_blocks) else -(-width // 16) * 16
    bits = 8 * (len(serialized(outcome.model)) - 3500) / (ROWS * padded)
    assert bits < BITS_A_WEIGHT[quantizer] + 0.3
    wanted = ids(11)
    table = restored(weights((ROWS, width)), quantizer)
    expected = np.maximum(table[wanted], 0) @ table.T
    assert sqnr_db(expected, run(outcome.model, {"ids": wanted})) > 36


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_head_of_its_own_is_not_tied(quantizer: Quantizer) -> None:
    outcome = quantizer(language_model("untied"))
    assert len(serialized(outcome.model)) > 2 * ROWS * 64 * (0.5 if quantizer is int4 else 1)
    wanted = ids(11)
    reference = run(language_model("untied"), {"ids": wanted})
    assert sqnr_db(reference, run(outcome.model, {"ids": wanted})) > (14 if quantizer is int4 else 34)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_table_whose_head_is_kept_stays_float_once(quantizer: Quantizer) -> None:
    """An integer copy beside the float table would make the file larger."""
    model = language_model("transposed")
    outcome = quantizer(model, ("logits/*",))
    assert outcome.quantized == frozenset()
    assert outcome.reasons == {
        "logits/MatMul": "kept in float by the recipe",
        "row/Gather": "its table is read in float by logits/MatMul",
    }
    assert len(serialized(outcome.model)) == pytest.approx(len(serialized(model)), abs=200)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_kept_lookup_keeps_the_table_exact(quantizer: Quantizer) -> None:
    outcome = quantizer(embedding(64), ("row/*",))
    assert outcome.reasons == {"row/Gather": "kept in float by the recipe"}
    wanted = ids(2, 3)
    np.testing.assert_array_equal(
        run(outcome.model, {"ids": wanted}), np.maximum(weights((ROWS, 64))[wanted], 0)
    )


@pytest.mark.parametrize(("rows", "quantized"), [(64, False), (65, True)])
def test_small_tables_stay_float(rows: int, quantized: bool) -> None:
    outcome = quantize_dynamic(embedding(32, rows), Encodings())
    assert bool(outcome.quantized) is quantized
    assert outcome.reasons == ({} if quantized else {"row/Gather": "its table has only 64 rows"})


def test_lookups_that_are_not_rows_are_left() -> None:
    model = graph(
        [node("Gather", ["table", "ids"], "columns", axis=1), node("Relu", ["columns"], "y")],
        {"ids": (np.int64, ("n",))},
        ["y"],
        {"table": weights((100, 100))},
    )
    assert quantize_dynamic(model, Encodings()).reasons == {
        "columns/Gather": "does not look up rows of a matrix"
    }


def test_positions_that_are_always_the_same_are_stored_small() -> None:
    model = graph(
        [node("Gather", ["table", "positions"], "row"), node("Add", ["x", "row"], "y")],
        {"x": (np.float32, ("batch", 400, 64))},
        ["y"],
        {"table": weights((ROWS, 64)), "positions": np.arange(400)},
    )
    x = np.zeros((1, 400, 64), np.float32)
    for quantizer in QUANTIZERS:
        outcome = quantizer(model)
        assert outcome.quantized == {"row/Gather"}
        assert len(serialized(outcome.model)) < 0.4 * len(serialized(model))
        expected = restored(weights((ROWS, 64)), quantizer)[None, :400]
        np.testing.assert_allclose(run(outcome.model, {"x": x}), expected, rtol=1e-6, atol=0)


def test_two_lookups_share_one_table() -> None:
    model = graph(
        [
            node("Gather", ["table", "a"], "first"),
            node("Gather", ["table", "b"], "second"),
            node("Add", ["first", "second"], "y"),
        ],
        {"a": (np.int64, ("n",)), "b": (np.int64, ("n",))},
        ["y"],
        {"table": weights((ROWS, 64))},
    )
    for quantizer in QUANTIZERS:
        outcome = quantizer(model)
        assert outcome.quantized == {"first/Gather", "second/Gather"}
        assert len(serialized(outcome.model)) < 1.3 * ROWS * 64
        feed = {"a": ids(6), "b": ids(6)[::-1].copy()}
        table = restored(weights((ROWS, 64)), quantizer)
        expected = table[feed["a"]] + table[feed["b"]]
        np.testing.assert_allclose(run(outcome.model, feed), expected, rtol=1e-5, atol=1e-7)


def test_tables_alone_are_quantised_in_place() -> None:
    """What a static scheme asks for: the head's own weights are the caller's business."""
    model = language_model("untied")
    outcome = quantize_tables(model, ())
    assert outcome.model is model
    assert outcome.quantized == {"row/Gather"}
    wanted = ids(11)
    reference = run(language_model("untied"), {"ids": wanted})
    assert sqnr_db(reference, run(model, {"ids": wanted})) > 36


def test_tying_changes_no_result() -> None:
    for tie in ("folded", "gemm copy"):
        model = language_model(tie)
        reference = run(model, {"ids": ids(5)})
        tied = model.clone()
        tie_tables(tied)
        np.testing.assert_allclose(run(tied, {"ids": ids(5)}), reference, rtol=1e-6, atol=1e-6)
        assert not [
            value for name, value in tied.graph.initializers.items() if name != "table" and value.uses()
        ]

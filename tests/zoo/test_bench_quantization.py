"""The quantisation benchmark's own parts: rows, resuming, running programs, and a table that says what holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(SCRIPTS))
    import bench_quantization as bench
    import bench_quantization_rows as data
    import bench_quantization_tables as tables

    yield SimpleNamespace(bench=bench, rows=data, tables=tables)
    sys.path.remove(str(SCRIPTS))


def outcome(top1: float | None, size: int = 200_000, **more: Any) -> dict[str, Any]:
    right = None if top1 is None else "1" * round(540 * top1) + "0" * (540 - round(540 * top1))
    figures = {
        "right": right,
        "sqnr_db": 30.0,
        "integer_share": 0.99,
        "seconds": 2.0,
        "peak_mb": 150.0,
        "samples": 540,
    }
    return {"top1": top1, "size_bytes": size, **figures, **more}


def source(top1: float | None = 0.99, **times: float) -> dict[str, Any]:
    p50 = {"float32": 1.0, **{name.replace("_", "-"): value for name, value in times.items()}}
    return {"top1": top1, "samples": 540, "size_bytes": 635_000, "calibration_samples": 256, "p50_ms": p50}


def test_rows_are_distinct_and_full_size_ones_are_only_measured_when_asked(scripts: SimpleNamespace) -> None:
    every = scripts.rows.rows()
    assert len({row.key for row in every}) == len(every)
    chosen = scripts.bench.select(every, ["*/ort-*"], full_size=False)
    assert chosen
    assert not any(row.case.is_full_size for row in chosen)
    assert any(row.case.is_full_size for row in scripts.bench.select(every, ["*"], full_size=True))
    assert {row.case.recipe for row in every if row.case.recipe} == {
        case.recipe for case in scripts.rows.CASES if case.recipe.exists()
    }


def test_our_rows_are_commands_that_the_command_line_knows(scripts: SimpleNamespace, tmp_path: Path) -> None:
    from exporter.cli import main
    from exporter.cli.quantize import command

    for row in scripts.rows.rows():
        typed = scripts.bench.command_of(row, tmp_path, tmp_path / "out.onnx")
        if row.way.tool == scripts.rows.OURS:
            arguments = typed[typed.index("quantize") + 1 :]
            given = command.make_context("quantize", arguments, **main.context_settings)
            assert given.params["out"] == tmp_path / "out.onnx"


def test_the_others_are_programs_of_their_own(scripts: SimpleNamespace, tmp_path: Path) -> None:
    imports = (SCRIPTS / "bench_quantization_others.py").read_text(encoding="utf-8")
    assert "exporter" not in imports
    nncf = next(row for row in scripts.rows.rows() if row.way.tool == scripts.rows.NNCF)
    assert scripts.bench.command_of(nncf, tmp_path, tmp_path / "o.onnx")[0].startswith(str(tmp_path))


def test_a_row_that_is_kept_is_not_measured_again(
    scripts: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench: ModuleType = scripts.bench
    measured: list[str] = []

    def measure(row: Any, _: Path) -> dict[str, Any]:
        measured.append(row.key)
        return outcome(0.98)

    monkeypatch.setattr(bench, "measured", measure)
    monkeypatch.setattr(bench, "race_case", lambda case, cache: None)
    only = ["--only", "words/ort-*", "--cache", str(tmp_path)]
    for extra in ([], [], ["--again"]):
        monkeypatch.setattr(sys, "argv", ["bench", *only, *extra])
        assert bench.main() == 0
    assert len(measured) == 2 * len(set(measured))
    assert "98.00 %" in capsys.readouterr().out
    stored = json.loads((tmp_path / "words" / "ort-minmax.json").read_text())
    assert stored["top1"] == 0.98


def test_a_program_gives_its_output_seconds_and_peak_or_its_last_words(scripts: SimpleNamespace) -> None:
    run, why = scripts.bench.run_program, scripts.bench.failure_of
    took = run([sys.executable, "-c", "x = bytearray(80_000_000); print('{}')"], 60)
    assert (took["rc"], took["stdout"].strip()) == (0, "{}")
    assert 80 < took["peak_mb"] < 200
    broke = run([sys.executable, "-c", "raise SystemExit('error[E-gate]: too much; fix: less')"], 60)
    assert why(broke, 60) == "error[E-gate]: too much; fix: less (exit 1)"
    slow = run([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert why(slow, 0.3) == "did not end within 0 s"


def test_the_table_holds_ours_against_the_best_other(scripts: SimpleNamespace) -> None:
    outcomes = {
        "words/ours-int8-auto": outcome(0.99),
        "words/ours-int8-minmax": outcome(0.50),
        "words/ort-minmax": outcome(0.97, 210_000),
        "words/ort-entropy": {"error": "did not end within 300 s", "seconds": 300.1, "peak_mb": 9000.0},
        "words/ours-int4-b32": outcome(0.98, 120_000),
        "words/ort-int4-b32": outcome(0.99, 635_000, integer_share=0.0),
    }
    times = {"ours_int8_auto": 0.5, "ours_int8_minmax": 0.5, "ort_minmax": 0.49}
    text = scripts.tables.document(outcomes, {"words": source(**times)})
    assert "| int8, rule auto | ours | +0.00 | 30.0 | 200.0 | 2.00× | 99 % | 2.0 | 150 |" in text
    assert "**did not end within 300 s**" in text
    assert "int8, rule auto (+0.00) against the best other, `quantize_static`, MinMax (+2.00)" in text
    assert "in drop, size and latency: **holds**" in text
    assert "no compared tool quantised anything" in text
    worse = {**outcomes, "words/ours-int8-auto": outcome(0.96, 220_000)}
    text = scripts.tables.document(worse, {"words": source(**times | {"ours_int8_auto": 0.6})})
    assert (
        "**does not hold**: loses 1.00 points more (6 samples for it, 0 for ours; p = 0.03); 4.8 % larger"
        in text
    )
    assert "22 % slower than the fastest of them" in text


def test_the_table_says_which_bounds_hold(scripts: SimpleNamespace) -> None:
    exact = outcome(
        0.99, left_float=["head"], rungs=[{"name": "auto", "value": 0.98, "kept": True, "holds": False}]
    )
    outcomes = {
        "digits-cnn/ours-int8-auto": outcome(0.986),
        "digits-cnn/ours-int4-b32": outcome(0.985),
        "digits-cnn/ours-int8-exact": exact,
        "bert-base/ours-int4-b128": outcome(None, 57_400_000),
        "bert-base/ours-int8-auto": outcome(None, 110_000_000, seconds=41.0, peak_mb=2400.0),
    }
    sources = {"digits-cnn": source(), "bert-base": source(None, ours_int4_b128=50.0, ours_weight_int8=60.0)}
    text = scripts.tables.document(outcomes, sources)
    assert "ours-int8-auto, at most 0.3 points lost: +0.40, **does not hold**." in text
    assert "ours-int4-b32, at most 1.0 points lost: +0.50, **holds**." in text
    assert "max_drop 0, ends with 1 operators in float: +0.00 points, **holds**." in text
    assert "auto 98.00; left in float: `head`" in text
    assert "bert-base int4, block 128, at most 59.5 MB: 57.4 MB, **holds**." in text
    assert "int4 faster than its int8 weights, 128 tokens: 1.20×, **holds**." in text
    assert "at most 40 s: 41 s, **does not hold**." in text
    assert "gpt2 int4, block 128, at most 68.0 MB: not measured." in text


def test_shares_count_four_bit_weights_twice(scripts: SimpleNamespace, tmp_path: Path) -> None:
    packed = numpy_helper.from_array(np.zeros((16, 2, 16), np.uint8), "packed")  # 1024 weights of 4 bits
    table = numpy_helper.from_array(np.zeros((32, 32), np.float32), "table")
    bias = numpy_helper.from_array(np.zeros(16, np.float32), "bias")
    product = helper.make_node("MatMulNBits", ["x", "packed", "s"], ["y"], domain="com.microsoft", bits=4)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([product], "g", values[:1], values[1:], [packed, table, bias])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert scripts.bench.integer_share(tmp_path / "m.onnx") == 0.5


def test_the_sign_test_is_that_of_the_tables(scripts: SimpleNamespace) -> None:
    from scipy.stats import binomtest

    for lost, won in ((0, 0), (2, 0), (5, 1), (7, 7), (30, 12)):
        expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert scripts.tables.sign_test(lost, won) == pytest.approx(expected)

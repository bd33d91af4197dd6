"""How a finished build, a replay and work in progress look."""

from __future__ import annotations

import copy
import importlib
import io
import json
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from exporter.bundle.report import read_report
from exporter.cli.terminal import bars
from exporter.cli.terminal.text import inert
from exporter.cli.views import figures

Call = Callable[..., Result]

LATENCY = {"p50_ms": 0.2214, "p90_ms": 0.3, "runs": 200, "threads": 1, "host": "x86_64 host, onnxruntime-cpu"}
EVIDENCE: dict[str, Any] = {
    "artifact": "onnx:weight_only_wi4_b128",
    "runtime": "onnxruntime-cpu",
    "runtime_version": "1.32.0",
    "not_run": None,
    "fidelity": {"sqnr_db": 32.41, "cosine": 0.99, "max_abs_error": 0.1, "agreement": 0.99, "samples": 540},
    "task": {"metric": "top1", "reference": 0.9963, "value": 0.9926, "interval": None, "drop_points": 0.37},
    "disagreement": None,
    "edge_cases": [],
    "latency": LATENCY,
    "peak_rss_mb": 71.1,
    "structure": {},
}
COVERAGE: dict[str, Any] = {
    "quantized": 1,
    "operators": 2,
    "mac_share": 0.014,
    "weight_share": 0.9,
    "left_float": {},
    "layers": [],
}
TENSORS: dict[str, Any] = {"inputs": [], "outputs": []}
REPORT: dict[str, Any] = {
    "schema": 1,
    "tool": {"name": "edge-exporter", "version": "0.1.0"},
    "libraries": {"onnx": "1.23.2"},
    "model": {
        "name": "digits-cnn",
        "version": "1.0.0",
        "origin": "factory",
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 32, 32]}],
        "axes": {"batch": 1},
        "parameters": 155000,
        "macs": 2289984,
        "float_bytes": 640000,
        "float_sha256": "d5bb",
        "float_latency": {**LATENCY, "p50_ms": 0.129},
    },
    "recovery": [],
    "data": {
        "evaluated_on": "evaluation.npz (npz)",
        "calibration_samples": None,
        "calibration_fingerprint": None,
        "rule": "auto",
    },
    "artifacts": [
        {
            **TENSORS,
            "artifact": "onnx:weight_only_wi4_b128",
            "file": "digits-cnn-weight_only_wi4_b128.onnx",
            "targets": ["android"],
            "runtimes": ["onnxruntime-cpu"],
            "size_bytes": 192000,
            "times_smaller": 3.333,
            "sha256": "7249",
            "coverage": COVERAGE,
            "evidence": EVIDENCE,
            "notes": ["[bold]convolutions[/bold] gain\x1b[31m nothing"],
            "seconds": 0.2,
        },
        {
            **TENSORS,
            "artifact": "mlpackage:float16",
            "file": "digits-cnn-float16.mlpackage",
            "targets": ["ios"],
            "runtimes": ["coreml"],
            "size_bytes": 376000,
            "times_smaller": 1.702,
            "sha256": "b103",
            "coverage": {**COVERAGE, "quantized": 0, "mac_share": 0.0, "weight_share": 0.0},
            "evidence": {
                **EVIDENCE,
                "artifact": "mlpackage:float16",
                "runtime": None,
                "runtime_version": None,
                "not_run": "Core ML runs on Apple systems only",
                "fidelity": None,
                "task": None,
                "latency": None,
                "peak_rss_mb": None,
            },
            "notes": [],
            "seconds": 11.0,
        },
    ],
    "gates": [],
    "refused": [{"artifact": "tflite:float16", "target": "android", "reason": "the model came as ONNX"}],
    "findings": ["calibration data: channel 3 is constant; look at the preprocessing"],
    "targets": {"android": {"folder": "android"}, "ios": {"folder": "ios"}},
    "seconds": {"validating": 20.3},
}

SHOWN = r"""digits-cnn 1.0.0  155 k parameters, 640 kB as float32

                                         times  MACs SQNR        change   host
file       scheme                 size smaller quant   dB   top1 points p50 ms
float      float32              640 kB                    0.9963         0.129
.onnx      weight_only_wi4_b128 192 kB   3.33×   1 % 32.4 0.9926  -0.37  0.221
.mlpackage float16              376 kB   1.70×     –    –      –      –      –

MACs quant: share of multiply-accumulates in operators whose weights are
quantised.
SQNR and top1 against the float model, over 540 samples.
Host p50: median of 200 runs, 1 thread (x86_64 host, onnxruntime-cpu); never a
device's latency.
Not run: mlpackage:float16: Core ML runs on Apple systems only

notes
-  calibration data: channel 3 is constant; look at the preprocessing
-  onnx:weight_only_wi4_b128: [bold]convolutions[/bold] gain\x1b[31m nothing

refused
-  tflite:float16 for android: the model came as ONNX

next
  edge-export validate android
  edge-export validate ios
  xdg-open report.html
  edge-export publish . REGISTRY
"""


@pytest.fixture
def built(workplace: Path) -> Path:
    (workplace / "report.json").write_text(json.dumps(REPORT))
    (workplace / "report.html").touch()
    return workplace


def test_the_end_of_a_build_is_one_table_and_what_to_type_next(built: Path, call: Call) -> None:
    result = call("inspect", ".")
    assert (result.exit_code, result.stdout) == (0, SHOWN)


def test_the_table_fits_80_columns_with_the_longest_scheme(built: Path, call: Call) -> None:
    report = copy.deepcopy(REPORT)
    report["artifacts"][0]["artifact"] = "mlpackage:weight_only_wi4_b128@fixed"
    report["artifacts"][0]["size_bytes"] = 123_456_789
    (built / "report.json").write_text(json.dumps(report))
    stdout = call("inspect", ".").stdout
    assert max(map(len, stdout.splitlines())) <= 80
    assert "123 MB" in stdout
    assert "-0.37" in stdout
    assert "…" not in stdout


def test_without_a_metric_agreement_stands_in_its_place(built: Path, call: Call) -> None:
    report = copy.deepcopy(REPORT)
    report["artifacts"][0]["evidence"]["task"] = None
    (built / "report.json").write_text(json.dumps(report))
    lines = call("inspect", ".").stdout.splitlines()
    assert lines[3].split() == [
        "file",
        "scheme",
        "size",
        "smaller",
        "quant",
        "dB",
        "agree",
        "points",
        "p50",
        "ms",
    ]
    assert lines[5].split()[-4:] == ["99", "%", "–", "0.221"]


def test_json_is_the_report_with_its_place(built: Path, call: Call) -> None:
    assert json.loads(call("inspect", ".", "--json").stdout) == {"path": ".", "report": REPORT}


def test_a_build_hands_the_plan_on_and_shows_what_comes_back(
    built: Path, recipe: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = read_report(built / "report.json")
    asked: dict[str, Any] = {}

    def build(plan: Any, *, out: Path, progress: Any, log: Path, resume: bool) -> Any:
        asked.update(name=plan.recipe.model.name, out=out, log_exists=log.is_file())
        with progress.step("calibrating", 2) as advance:
            advance(1)
        return types.SimpleNamespace(path=out / "tiny" / "1.0.0", report=report)

    monkeypatch.setattr(importlib.import_module("exporter.jobs.build"), "build", build)
    result = call("build", recipe, "--out", "there", "-v")
    assert result.exit_code == 0
    assert asked == {"name": "tiny", "out": Path("there"), "log_exists": True}
    assert result.stdout.endswith("  edge-export publish there/tiny/1.0.0 REGISTRY\n")
    assert result.stderr.startswith("log: /")


OUTCOME = {
    "bundle": "android",
    "target": "android",
    "model": "tiny 1.0.0",
    "files_hashed": 12,
    "preprocessing": {"samples": 4, "passed": True, "cause": None, "says": "4 pictures were prepared"},
    "artifacts": [
        {
            "file": "tiny-float32.onnx",
            "artifact": "onnx:float32",
            "runtime": "onnxruntime-cpu 1.32.0",
            "passed": True,
            "note": "",
            "max_abs_error": 1.23e-7,
            "tolerance": 1e-4,
            "sqnr_db": 120.0,
        },
        {
            "file": "tiny-float16.mlpackage",
            "artifact": "mlpackage:float16",
            "runtime": None,
            "passed": None,
            "note": "hashed only",
        },
    ],
    "passed": True,
}


def test_a_replay_shows_each_artifact_and_what_could_not_be_run(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importlib.import_module("exporter.jobs.replay"), "replay_bundle", lambda path, *, progress: OUTCOME
    )
    result = call("validate", "android")
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny 1.0.0 for android  12 files are the bytes that were built"
    assert lines[1] == "4 pictures were prepared"
    assert lines[5].split() == [
        "onnx:float32", "onnxruntime-cpu", "1.32.0", "as", "recorded", "1.2e-07", "0.0001", "120.0",
    ]  # fmt: skip
    assert lines[6].split() == ["mlpackage:float16", "–", "not", "run", "–", "–", "–"]
    assert lines[-1] == "-  tiny-float16.mlpackage: hashed only"
    assert json.loads(call("validate", "android", "--json").stdout) == OUTCOME


def test_a_quick_step_leaves_no_trace_on_a_terminal_and_a_long_one_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bars, "PATIENCE_SECONDS", 0.05)
    screen = io.StringIO()
    console = RichConsole(file=screen, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with bars.Bars(console) as progress:
        with progress.step("quick"):
            pass
        with progress.step("long [bold]\x1b[2J", 10) as advance:
            time.sleep(0.1)
            advance(5)
            time.sleep(0.3)
        progress.say("a channel is constant")
    text = screen.getvalue()
    assert "quick" not in text
    assert "5/10" in text
    assert r"  long [bold]\x1b[2J  0.4 s" in text
    assert "note: a channel is constant" in text
    assert "\x1b[2J" not in text


def test_a_log_tells_long_steps_when_they_began_and_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(bars, "HEARTBEAT_SECONDS", 0.1)
    told: list[str] = []
    progress = bars.Lines(told.append)
    with progress.step("quick"):
        pass
    with progress.step("validating"):
        time.sleep(0.1)
        with progress.step("android", 4) as advance:
            time.sleep(0.15)
            advance(3)
    progress.say("done\nwell")
    assert [line[12:] for line in told] == [
        "validating",
        "  android (4)",
        "  android: 3 of 4",
        "note: done well",
    ]
    assert told[0].startswith("     0.0 s  ")


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (figures.byte_size, 812, "812 B"),
        (figures.byte_size, 98_200, "98.2 kB"),
        (figures.byte_size, 26_000_000, "26.0 MB"),
        (figures.byte_size, 1_320_000_000, "1.32 GB"),
        (figures.byte_size, 999_999, "1.00 MB"),
        (figures.count, 4_111_000_000, "4.11 G"),
        (figures.times, 3.6, "3.60×"),
        (figures.times, 9.996, "10.0×"),
        (figures.times, 99.96, "100×"),
        (figures.share, 1.0, "100 %"),
        (figures.share, 0.9999, ">99 %"),
        (figures.share, 0.0001, "<1 %"),
        (figures.share, 0.0, "0 %"),
        (figures.decibels, float("inf"), "exact"),
        (figures.decibels, 32.44, "32.4"),
        (figures.milliseconds, 0.07531, "0.075"),
        (figures.milliseconds, 20.61, "20.6"),
        (figures.points, 0.28, "-0.28"),
        (figures.points, -0.28, "+0.28"),
        (figures.points, 0.0, "+0.00"),
        (figures.small, 0.0, "0"),
        *(
            (function, None, "–")
            for function in (figures.byte_size, figures.share, figures.points, figures.small)
        ),
    ],
)
def test_figures_carry_their_unit_and_claim_no_more_than_is_so(
    function: Callable[[float | None], str], value: float | None, text: str
) -> None:
    assert function(value) == text


@given(st.text(st.characters()))
def test_inert_text_is_printable_and_printable_text_is_kept(text: str) -> None:
    assert inert(text).isprintable()
    if text.isprintable():
        assert inert(text) == text.strip(" \t")
    assert inert(inert(text)) == inert(text)

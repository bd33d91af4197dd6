"""The script of a Raspberry Pi bundle, run as its users run it: in another process, with the bundle only."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.preprocess import Preprocess
from targets.raspberry_pi import RUN_SCRIPT

PYTHON = [sys.executable, "-I"]
ONNX, TFLITE = "tiny-float32.onnx", "tiny-float32.tflite"


def run(bundle: Path, *arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the bundle's script in an isolated interpreter, with modules hidden as if not installed."""
    command = [*PYTHON, str(bundle / "run.py"), *arguments]
    if without:
        code = (
            "import runpy, sys\n"
            f"sys.modules.update(dict.fromkeys({without!r}))\n"
            f"sys.argv = [{str(bundle / 'run.py')!r}, *sys.argv[1:]]\n"
            f"runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')\n"
        )
        command = [*PYTHON, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=bundle.parent, timeout=120, check=False
    )


def one_error_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error[")]
    assert len(lines) == 1, result.stderr
    assert "; fix: " in lines[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[0]


def test_replays_every_model_within_tolerance(pi_bundle: Path) -> None:
    result = run(pi_bundle, "--threads", "1", "--runs", "5", "--json")

    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert [model["model"] for model in report["models"]] == [ONNX, TFLITE]
    onnx, tflite = report["models"]
    assert onnx["runtime"].startswith("onnxruntime-cpu ")
    assert tflite["runtime"].startswith("ai-edge-litert ")
    assert onnx["parity"]["samples"] == 2
    assert onnx["parity"]["max_abs"] == 0.0
    assert tflite["parity"]["max_abs"] is None
    assert 0 <= tflite["parity"]["max_abs_reference"] < 1e-5
    for model in (onnx, tflite):
        assert 0 < model["latency"]["p50_ms"] <= model["latency"]["p90_ms"]
        assert (model["latency"]["runs"], model["latency"]["threads"]) == (5, 1)


def test_tells_people_parity_and_latency(pi_bundle: Path) -> None:
    result = run(pi_bundle, "--threads", "1", "--runs", "3", "--model", ONNX)

    assert result.returncode == 0, result.stderr
    assert f"{ONNX} in onnxruntime-cpu" in result.stdout
    assert "parity   ok: 2 samples, largest difference 0 from the build, 0 from float" in result.stdout
    assert "(3 runs, 1 threads)" in result.stdout
    assert TFLITE not in result.stdout


@pytest.mark.parametrize("spoiled", [np.full((1, 3), 9.0, np.float32), np.full((1, 3), np.nan, np.float32)])
def test_exits_14_when_an_answer_is_out_of_tolerance(pi_bundle: Path, spoiled: np.ndarray) -> None:
    np.save(pi_bundle / "golden/1/tiny-float32.logits.npy", spoiled)

    result = run(pi_bundle, "--threads", "1", "--runs", "2", "--json")

    assert result.returncode == 14
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert [model["parity"]["passed"] for model in report["models"]] == [False, True]


def test_skips_a_model_whose_runtime_is_missing_and_says_so(pi_bundle: Path) -> None:
    result = run(pi_bundle, "--runs", "2", without=("ai_edge_litert", "tflite_runtime"))

    assert result.returncode == 0, result.stderr
    assert f"{TFLITE}: skipped, ai-edge-litert is not installed" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--input", "x.npy")])
def test_says_what_to_install_when_no_runtime_is_there(pi_bundle: Path, arguments: tuple[str, ...]) -> None:
    result = run(pi_bundle, *arguments, without=("onnxruntime", "ai_edge_litert", "tflite_runtime"))

    assert result.returncode == 12
    assert "python -m pip install ai-edge-litert or onnxruntime" in one_error_line(result)


def test_says_that_numpy_is_missing(pi_bundle: Path) -> None:
    result = run(pi_bundle, without=("numpy",))

    assert result.returncode == 12
    assert "numpy is not installed" in one_error_line(result)


@pytest.mark.parametrize("model", [ONNX, TFLITE, "onnx:float32"])
def test_predicts_from_a_tensor(pi_bundle: Path, tmp_path: Path, model: str) -> None:
    np.save(tmp_path / "x.npy", np.array([[[[1.0, 2.0], [-1.0, 0.5]]]], np.float32))

    result = run(pi_bundle, "--input", str(tmp_path / "x.npy"), "--model", model, "--json")

    assert result.returncode == 0, result.stderr
    top = json.loads(result.stdout)["top"]
    weights = np.arange(12, dtype=np.float32).reshape(3, 4) / 10 - 0.5
    scores = weights @ np.array([1.0, 2.0, -1.0, 0.5], np.float32) + np.array([0.5, -0.25, 0.0], np.float32)
    labels = ["cat", "dog", "naïve bird"]
    assert [item["label"] for item in top] == [labels[index] for index in np.argsort(-scores)]
    assert [item["score"] for item in top] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)
    assert [item["index"] for item in top] == np.argsort(-scores).tolist()


def test_predicts_with_the_file_that_was_fastest_on_a_board_like_this(
    pi_bundle: Path, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("run_script", pi_bundle / "run.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 2, 2), np.float32))
    (pi_bundle / "measured").mkdir()
    for board, expected in (("another board", ONNX), (script._board(), TFLITE)):
        record = {"format": 1, "device": {"board": board}, "fastest": {"file": TFLITE}}
        (pi_bundle / "measured" / "it-0123456789ab.json").write_text(json.dumps(record))
        result = run(pi_bundle, "--input", str(tmp_path / "x.npy"), "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["model"] == expected


def test_predicts_from_a_picture_by_the_contract(pi_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 3), (255, 255, 255)).save(tmp_path / "white.png")

    result = run(pi_bundle, "--input", str(tmp_path / "white.png"), "--model", ONNX)

    assert result.returncode == 0, result.stderr
    # White is (1 - 0.25) / 0.5 = 1.5 in every pixel, and the last row of the weights sums to 1.8.
    assert result.stdout.splitlines()[1].split() == ["2.70000", "naïve", "bird"]


def _picture_cases() -> list[dict[str, Any]]:
    base = Preprocess(size=(9, 7), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).to_dict()
    return [
        base,
        base | {"fit": "crop", "resize": "bicubic", "layout": "NHWC"},
        base | {"fit": "letterbox", "pad": 114, "color": "BGR"},
        base | {"resize": "nearest", "dtype": "uint8", "scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3},
        base | {"color": "L", "mean": [0.1], "std": [0.9]},
        base | {"dtype": "int8", "scale": 1.0, "mean": [128.0] * 3, "std": [1.0] * 3},
    ]


@pytest.mark.parametrize("contract", _picture_cases())
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_prepares_pictures_exactly_as_calibration_does(
    tmp_path: Path, contract: dict[str, Any], mode: str
) -> None:
    random = np.random.default_rng(3)
    shape = {"RGB": (20, 31, 3), "L": (20, 31), "RGBA": (20, 31, 4), "I;16": (20, 31)}[mode]
    dtype, top = (np.uint16, 65536) if mode == "I;16" else (np.uint8, 256)
    Image.fromarray(random.integers(0, top, shape).astype(dtype)).save(tmp_path / "picture.png")
    spec = importlib.util.spec_from_file_location("bundle_run_script", RUN_SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    tensor = script.picture_tensor(tmp_path / "picture.png", contract)

    with Image.open(tmp_path / "picture.png") as picture:
        expected = Preprocess.from_dict(contract).apply(picture)
    assert tensor.dtype == expected.dtype
    np.testing.assert_array_equal(tensor, expected)


def _spoil(bundle: Path, fault: str) -> tuple[str, ...]:
    models, onnx = bundle / "models.json", bundle / "models" / ONNX
    if fault == "model is missing":
        onnx.unlink()
    elif fault == "model is truncated":
        onnx.write_bytes(onnx.read_bytes()[:40])
    elif fault == "models.json is cut":
        models.write_text(models.read_text()[:30])
    elif fault == "newer format":
        models.write_text(json.dumps(json.loads(models.read_text()) | {"format": 2}))
    elif fault == "golden vector is a pickle":
        np.save(bundle / "golden/0/input.image.npy", np.array([{}]), allow_pickle=True)
    elif fault == "no golden samples":
        golden = bundle / "golden/golden.json"
        golden.write_text(json.dumps(json.loads(golden.read_text()) | {"samples": []}))
    elif fault == "golden vector is outside":
        golden = bundle / "golden/golden.json"
        golden.write_text(golden.read_text().replace("0/input.image.npy", "../golden/0/input.image.npy"))
    elif fault == "no tolerance":
        golden = bundle / "golden/golden.json"
        golden.write_text(json.dumps(json.loads(golden.read_text()) | {"tolerance": {TFLITE: {}}}))
    elif fault == "input has another shape":
        np.save(bundle / "x.npy", np.zeros((1, 5, 2, 2), np.float32))
        return ("--input", str(bundle / "x.npy"))
    elif fault == "tflite input has another shape":
        np.save(bundle / "x.npy", np.zeros((1, 5, 2, 2), np.float32))
        return ("--input", str(bundle / "x.npy"), "--model", TFLITE)
    elif fault == "input is no picture":
        (bundle / "x.png").write_bytes(b"GIF89a nonsense")
        return ("--input", str(bundle / "x.png"))
    elif fault == "input does not exist":
        return ("--input", str(bundle / "absent.npy"))
    elif fault == "no such model":
        return ("--model", "other.onnx")
    return ()


@pytest.mark.parametrize(
    ("fault", "exit_code", "names"),
    [
        ("model is missing", 10, ONNX),
        ("model is truncated", 12, ONNX),
        ("models.json is cut", 10, "models.json"),
        ("newer format", 12, "models.json"),
        ("golden vector is a pickle", 10, "input.image.npy"),
        ("no golden samples", 10, "golden.json"),
        ("no tolerance", 10, ONNX),
        ("golden vector is outside", 11, "../golden/0/input.image.npy"),
        ("input has another shape", 10, ONNX),
        ("tflite input has another shape", 10, "[1, 1, 2, 2]"),
        ("input is no picture", 10, "x.png"),
        ("input does not exist", 10, "absent.npy"),
        ("no such model", 2, "other.onnx"),
    ],
)
def test_a_fault_is_one_line_and_its_exit_code(
    pi_bundle: Path, fault: str, exit_code: int, names: str
) -> None:
    result = run(pi_bundle, "--runs", "1", *_spoil(pi_bundle, fault))

    assert result.returncode == exit_code, result.stderr
    assert names in one_error_line(result)


def test_needs_nothing_but_numpy_and_a_runtime(pi_bundle: Path) -> None:
    """The script must not lean on the packages that built the bundle."""
    hidden = ("exporter", "targets", "calibration", "onnx", "torch", "pydantic", "PIL")

    result = run(pi_bundle, "--runs", "1", without=hidden)

    assert result.returncode == 0, result.stderr

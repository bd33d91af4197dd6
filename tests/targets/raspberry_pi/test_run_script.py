"""The script of a Raspberry Pi bundle, run as its users run it: in another process, with the bundle only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_script_ground import load_script

from calibration.preprocess import Preprocess
from exporter.system.files import digest

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


def one_error_line(out: str, err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("error[")
    assert "; fix: " in line
    assert out == ""
    return line


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
    assert "python -m pip install ai-edge-litert or onnxruntime" in one_error_line(
        result.stdout, result.stderr
    )


def test_says_that_numpy_is_missing(pi_bundle: Path) -> None:
    result = run(pi_bundle, without=("numpy",))

    assert result.returncode == 12
    assert "numpy is not installed" in one_error_line(result.stdout, result.stderr)


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
    script = load_script(pi_bundle / "run.py")
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 2, 2), np.float32))
    (pi_bundle / "measured").mkdir()
    for board, expected in (("another board", ONNX), (script.board_model(), TFLITE)):
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


@pytest.mark.parametrize("how", [("white.png",), ("--input", "white.png")])
def test_a_picture_may_be_named_with_or_without_an_option(
    pi_bundle: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    Image.new("L", (2, 2), 255).save(tmp_path / "white.png")

    result = run(pi_bundle, *how, "--runtime", "litert", "--json")

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["model"] == TFLITE


# -- from the picture on --


def test_a_replay_begins_with_the_pictures(pi_bundle: Path) -> None:
    told = run(pi_bundle, "--replay", "--runs", "1")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[0] == "2 golden pictures give their golden tensors"

    report = json.loads(run(pi_bundle, "--replay", "--runs", "1", "--json").stdout)
    assert report["preprocessing"] == {
        "samples": 2,
        "passed": True,
        "cause": None,
        "says": "2 golden pictures give their golden tensors",
    }


def test_a_picture_that_gives_another_tensor_fails_the_replay(pi_bundle: Path) -> None:
    Image.new("L", (6, 5), 255).save(pi_bundle / "golden/1/raw.image.png")

    result = run(pi_bundle, "--runs", "1", "--json")

    assert result.returncode == 14, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert [model["parity"]["passed"] for model in report["models"]] == [True, True]
    assert (report["preprocessing"]["passed"], report["preprocessing"]["cause"]) == (False, "resize")
    assert report["preprocessing"]["says"].startswith("sample 1, 1/raw.image.png: the picture differs by ")
    told = run(pi_bundle, "--runs", "1")
    assert told.returncode == 14
    assert told.stdout.splitlines()[0] == f"resize: {report['preprocessing']['says']}"


def test_without_pillow_it_says_that_pictures_were_not_replayed(pi_bundle: Path) -> None:
    result = run(pi_bundle, "--runs", "1", "--json", without=("PIL",))

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["preprocessing"] == {
        "samples": 0,
        "passed": None,
        "cause": None,
        "says": "not replayed from pictures: Pillow is not installed",
    }


def test_an_older_bundle_without_pictures_is_replayed_from_tensors(pi_bundle: Path) -> None:
    golden = pi_bundle / "golden/golden.json"
    document = json.loads(golden.read_text())
    for sample in document["samples"]:
        del sample["raw"]
    golden.write_text(json.dumps(document))

    result = run(pi_bundle, "--runs", "1")

    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "not replayed from pictures: the bundle holds none"


def test_names_what_is_wrong_with_a_tensor_of_ones_own(pi_bundle: Path, tmp_path: Path) -> None:
    golden = np.load(pi_bundle / "golden/1/input.image.npy")
    np.save(tmp_path / "right.npy", golden.reshape(2, 2) + np.float32(0.005))
    np.save(tmp_path / "wrong.npy", golden * np.float32(0.5) + np.float32(0.25))

    right = run(pi_bundle, "--check-tensor", str(tmp_path / "right.npy"), "--sample", "1")
    wrong = run(pi_bundle, "--check-tensor", str(tmp_path / "wrong.npy"), "--sample", "1", "--json")
    other = run(pi_bundle, "--check-tensor", str(tmp_path / "right.npy"), "--sample", "0")

    assert (right.returncode, right.stdout) == (0, "sample 1: ok: the tensor agrees with the golden one\n")
    assert wrong.returncode == 14
    assert json.loads(wrong.stdout) == {
        "format": 1,
        "sample": 1,
        "passed": False,
        "cause": "normalisation",
        "says": "mean and std were not applied",
    }
    assert other.returncode == 14
    assert other.stdout.startswith("sample 0: resize: the picture differs by ")


# -- as a module --


def test_three_lines_of_python(pi_bundle: Path, tmp_path: Path) -> None:
    script = load_script(pi_bundle / "run.py")
    Image.new("RGB", (5, 3), (255, 255, 255)).save(tmp_path / "white.png")

    model = script.Model()
    best = model.predict(str(tmp_path / "white.png"))

    assert [label for label, _ in best] == ["naïve bird", "dog", "cat"]
    assert [item.score for item in best] == pytest.approx([2.7, 0.05, -1.6], abs=1e-5)
    assert repr(model) == f"<tiny 1.0.0: {ONNX} in {model.runtime}>"
    assert model.predict(tmp_path / "white.png", top=1) == best[:1]


def test_a_frame_is_a_picture(pi_bundle: Path) -> None:
    model = load_script(pi_bundle / "run.py").Model(runtime="onnxruntime", threads=1)
    frame = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)

    assert model.predict(frame) == model.predict(Image.fromarray(frame))
    assert model.predict(frame[..., 0]) == model.predict(Image.fromarray(frame[..., 0]))
    np.testing.assert_array_equal(
        model.prepare(frame)["image"],
        Preprocess.from_dict(model.contract).apply(Image.fromarray(frame)),
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_runs_a_tensor_or_tensors_by_name(pi_bundle: Path, runtime: str) -> None:
    script = load_script(pi_bundle / "run.py")
    model = script.Model(runtime=runtime)
    tensor = np.load(pi_bundle / "golden/0/input.image.npy")

    answers = model.run(tensor)

    assert list(answers) == ["logits"]
    np.testing.assert_allclose(
        answers["logits"], np.load(pi_bundle / "golden/0/reference.logits.npy"), atol=1e-5
    )
    np.testing.assert_array_equal(model.run({"image": tensor})["logits"], answers["logits"])
    assert model.replay()["passed"] is True
    assert model.runtime.startswith({"onnxruntime": "onnxruntime-cpu ", "litert": "ai-edge-litert "}[runtime])


@pytest.mark.parametrize(
    ("wish", "code", "says"),
    [
        (
            {"runtime": "tensorrt"},
            "E-usage",
            "there is no runtime 'tensorrt'; fix: use one of litert, onnxruntime",
        ),
        ({"threads": 0}, "E-usage", "threads is 0; fix: give a whole number from 1"),
        (
            {"model": "other.onnx"},
            "E-usage",
            f"the bundle has no model 'other.onnx'; fix: use one of {ONNX}, {TFLITE}",
        ),
    ],
)
def test_a_model_that_cannot_be_made_says_why(
    pi_bundle: Path, wish: dict[str, Any], code: str, says: str
) -> None:
    script = load_script(pi_bundle / "run.py")
    with pytest.raises(script.ModelError) as caught:
        script.Model(**wish)
    assert (caught.value.code, str(caught.value)) == (code, says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"imgae": np.zeros((1, 1, 2, 2), np.float32)},
            "the inputs are image, not imgae; fix: give each by its name",
        ),
        (np.zeros((1, 1, 3, 3), np.float32), "refused its input"),
        (np.zeros((1, 1, 2, 2), np.float64), "refused its input"),
    ],
)
def test_inputs_that_do_not_fit_are_named(pi_bundle: Path, given: Any, says: str) -> None:
    script = load_script(pi_bundle / "run.py")
    with pytest.raises(script.ModelError, match=says):
        script.Model(runtime="onnxruntime").run(given)


def test_a_float_array_is_no_frame(pi_bundle: Path) -> None:
    script = load_script(pi_bundle / "run.py")
    with pytest.raises(
        script.ModelError, match=r"not float32 \[1, 1, 2, 2\]; fix: give a prepared tensor to Model.run"
    ):
        script.Model().predict(np.zeros((1, 1, 2, 2), np.float32))


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
    script = load_script()

    with Image.open(tmp_path / "picture.png") as picture:
        expected = Preprocess.from_dict(contract).apply(picture)
        tensors = [script.picture_tensor(given, contract) for given in (tmp_path / "picture.png", picture)]
    for tensor in tensors:
        assert tensor.dtype == expected.dtype
        np.testing.assert_array_equal(tensor, expected)


def _spoil(bundle: Path, fault: str) -> tuple[str, ...]:
    models, onnx = bundle / "models.json", bundle / "models" / ONNX
    if fault == "model is missing":
        onnx.unlink()
    elif fault == "model is truncated":
        onnx.write_bytes(onnx.read_bytes()[:40])
    elif fault == "one bit of the model is flipped":
        flipped = bytearray(onnx.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        onnx.write_bytes(flipped)
    elif fault == "model is sound and no model":
        onnx.write_bytes(b"no model")
        text = models.read_text().replace(json.loads(models.read_text())["models"][0]["sha256"], digest(onnx))
        models.write_text(text)
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
    elif fault == "golden picture is outside":
        golden = bundle / "golden/golden.json"
        golden.write_text(golden.read_text().replace("0/raw.image.png", "/etc/hostname"))
    elif fault == "golden picture is cut":
        picture = bundle / "golden/1/raw.image.png"
        picture.write_bytes(picture.read_bytes()[:40])
    elif fault == "golden tensor is of another model":
        np.save(bundle / "golden/0/input.image.npy", np.zeros((1, 3, 1, 1), np.float32))
        return ("--check-tensor", str(bundle / "golden/0/input.image.npy"))
    elif fault == "no such sample":
        np.save(bundle / "x.npy", np.zeros((1, 1, 2, 2), np.float32))
        return ("--check-tensor", str(bundle / "x.npy"), "--sample", "2")
    elif fault == "tensor to check is text":
        np.save(bundle / "x.npy", np.array(["a", "b", "c", "d"]))
        return ("--check-tensor", str(bundle / "x.npy"))
    elif fault == "two wishes at once":
        return ("photo.jpg", "--replay")
    elif fault == "no such option":
        return ("--thread", "2", "--bogus")
    elif fault == "no threads":
        return ("--threads", "0")
    elif fault == "runtime does not take the model":
        return ("--model", ONNX, "--runtime", "litert")
    return ()


@pytest.mark.parametrize(
    ("fault", "exit_code", "names"),
    [
        ("model is missing", 10, ONNX),
        ("model is truncated", 19, ONNX),
        ("one bit of the model is flipped", 19, "SHA-256"),
        ("model is sound and no model", 12, ONNX),
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
        ("golden picture is outside", 11, "/etc/hostname"),
        ("golden picture is cut", 10, "raw.image.png"),
        ("golden tensor is of another model", 10, "the contract makes 2 x 2 x 1"),
        ("no such sample", 2, "use --sample 0 to 1"),
        ("tensor to check is text", 10, "not numbers"),
        ("two wishes at once", 2, "more than one of"),
        ("no such option", 2, "--bogus"),
        ("no threads", 2, "0 is not 1 or more"),
        ("runtime does not take the model", 2, f"litert does not take {ONNX}"),
    ],
)
def test_a_fault_is_one_line_and_its_exit_code(
    pi_bundle: Path, fault: str, exit_code: int, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--runs", "1", *_spoil(pi_bundle, fault)]

    status = load_script(pi_bundle / "run.py").main(arguments)

    out, err = capsys.readouterr()
    assert status == exit_code, err
    assert names in one_error_line(out, err)


def test_help_begins_as_the_file_does(pi_bundle: Path) -> None:
    told = run(pi_bundle, "--help").stdout.split("\n\n")[1]
    assert " ".join(told.split()) == load_script().__doc__.splitlines()[0]


def test_needs_nothing_but_numpy_and_a_runtime(pi_bundle: Path) -> None:
    """The script must not lean on the packages that built the bundle."""
    hidden = ("exporter", "targets", "calibration", "onnx", "torch", "pydantic", "PIL")

    result = run(pi_bundle, "--runs", "1", without=hidden)

    assert result.returncode == 0, result.stderr

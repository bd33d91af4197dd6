"""A wheel as its users have it: installed by pip into a fresh environment, with one runtime, the other, or none."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pip_ground import RUNTIMES, make_venv, pip, publish, run, with_manifest

from targets.devices import installer

THREE_LINES = """
from tiny_edge import Model
model = Model()
print(model.predict("photo.png"))
"""
DETAILS = """
import json, sys
import numpy as np
import tiny_edge
from tiny_edge import Model
model = Model(runtime=sys.argv[1], threads=2)
tensor = model.prepare("photo.png")["image"]
answers = model.run(tensor)
assert answers["logits"].tolist() == model.run({"image": tensor})["logits"].tolist()
runtime, passed = model.runtime.split()[0], model.replay()["passed"]
print(json.dumps([tiny_edge.__version__, model.file, runtime, passed, answers["logits"].dtype.name]))
"""
MODULES = {"onnxruntime": "onnxruntime-cpu", "litert": "ai-edge-litert"}
FILES = {"onnxruntime": "tiny-float32.onnx", "litert": "tiny-float32.tflite"}


@pytest.fixture
def registry(pi_bundle: Path, tmp_path: Path) -> Path:
    """A registry with the tiny model, and a picture in the folder above it."""
    publish(with_manifest(pi_bundle), tmp_path / "registry")
    shutil.copyfile(pi_bundle / "golden/0/raw.image.png", tmp_path / "photo.png")
    return tmp_path / "registry"


def install(registry: Path, python: Path, wish: str) -> None:
    pip(python, "install", "--index-url", f"{registry.as_uri()}/simple/", wish)


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_three_lines_and_a_command_under_one_runtime_alone(
    registry: Path, tmp_path: Path, runtime: str
) -> None:
    python = make_venv(tmp_path / "venv", "numpy", "pillow", RUNTIMES[runtime])
    files = sorted(path for path in (tmp_path / "venv").rglob("*"))
    install(registry, python, f"tiny-edge[{runtime}]")

    three = run(python, "-c", THREE_LINES, cwd=tmp_path)
    assert three.returncode == 0, three.stderr
    assert three.stdout.count("Prediction(") == 3
    details = run(python, "-c", DETAILS, runtime, cwd=tmp_path)
    assert details.returncode == 0, details.stderr
    version, file, name, passed, dtype = json.loads(details.stdout)
    assert (version, file, passed, dtype) == ("1.0.0", FILES[runtime], True, "float32")
    assert name == MODULES[runtime]

    command = python.parent / "tiny-edge"
    told = run(command, "photo.png", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["model"] == FILES[runtime]
    replayed = run(command, "--replay", "--runs", "1", "--json", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    report = json.loads(replayed.stdout)
    assert report["preprocessing"]["passed"] is True
    assert [item["model"] for item in report["models"] if "parity" in item] == [FILES[runtime]]
    (other,) = set(FILES) - {runtime}
    assert [item for item in report["models"] if "skipped" in item] == [
        {"model": FILES[other], "skipped": f"{RUNTIMES[other]} is not installed"}
    ]

    pip(python, "uninstall", "--yes", "tiny-edge")
    assert sorted(path for path in (tmp_path / "venv").rglob("*")) == files


def test_without_a_runtime_both_say_what_to_install(registry: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv", "numpy", "pillow")
    install(registry, python, "tiny-edge")
    says = (
        "no runtime is installed for tiny-float32.onnx, tiny-float32.tflite; "
        "fix: python -m pip install ai-edge-litert or onnxruntime"
    )

    three = run(python, "-c", THREE_LINES, cwd=tmp_path)
    assert three.returncode == 1
    assert three.stderr.splitlines()[-1] == f"tiny_edge.run.ModelError: {says}"
    for arguments in (("photo.png",), ("--replay",), ()):
        told = run(python, "-m", "tiny_edge", *arguments, cwd=tmp_path)
        assert (told.returncode, told.stdout, told.stderr) == (12, "", f"error[E-unsupported]: {says}\n")


def test_a_model_that_changed_after_it_was_installed_is_not_loaded(registry: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv", "numpy", "pillow", "onnxruntime")
    install(registry, python, "tiny-edge")
    (model,) = (tmp_path / "venv").rglob("tiny_edge/models/tiny-float32.onnx")
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)

    told = run(python.parent / "tiny-edge", "photo.png", cwd=tmp_path)

    assert (told.returncode, told.stdout) == (19, "")
    assert told.stderr.startswith(f"error[E-integrity]: {model} has SHA-256 ")
    three = run(python, "-c", THREE_LINES, cwd=tmp_path)
    assert three.stderr.splitlines()[-1].startswith(f"tiny_edge.run.ModelError: {model} has SHA-256 ")


@pytest.mark.nightly
@pytest.mark.slow
def test_everything_comes_from_indexes_into_an_empty_environment(pi_bundle: Path, tmp_path: Path) -> None:
    """Nothing is linked: pip itself brings numpy, Pillow and both runtimes from the index that this machine uses."""
    wheel = publish(with_manifest(pi_bundle), tmp_path / "registry")[0].package
    line = wheel.lines[0].replace("{registry}", (tmp_path / "registry").as_uri())
    wish = shlex.split(line)[2].replace("[onnxruntime]", "[onnxruntime,litert]")
    shutil.copyfile(pi_bundle / "golden/0/raw.image.png", tmp_path / "photo.png")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    python = tmp_path / "venv" / "bin" / "python"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ran = subprocess.run(
        [str(python), "-m", "pip", "install", "--no-input", wish],
        capture_output=True, text=True, env=kept, cwd=tmp_path, timeout=600, check=False,
    )  # fmt: skip
    if any(sign in ran.stderr for sign in installer.NO_NETWORK):
        pytest.skip("no package index can be reached from here")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for runtime in sorted(RUNTIMES):
        details = run(python, "-c", DETAILS, runtime, cwd=tmp_path)
        assert details.returncode == 0, details.stderr
        assert json.loads(details.stdout)[1:4] == [FILES[runtime], MODULES[runtime], True]

"""Prune, distil, train for int8, export: one recipe on a real trained model, to all three targets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from build_ground import ROOT, Built, build, edge_export, read_built
from report_ground import reported
from shared_builds import once

from exporter.cli.demo import demo_recipe

DEMO = demo_recipe("cnn-small").parent
FEW_EPOCHS = 'method = "distill"\ntrain = { epochs = 4, learning_rate = 1e-3, checkpoint_seconds = 0 }\n'


def _copy_demo(folder: Path) -> None:
    import shutil

    shutil.copytree(DEMO, folder, dirs_exist_ok=True)


def _recipe(folder: Path, steps: str) -> Path:
    """Write the small demo's recipe with other `steps`, one artifact and no budget."""
    text = (DEMO / "digits-cnn-small.toml").read_text()
    head, rest = text[: text.index("[[compress]]")], text[text.index("[quantize]") :]
    rest = rest[: rest.index("[targets.android]")].replace("max_drop = 0.5", "max_drop = 100")
    path = folder / "recipe.toml"
    path.write_text(f'{head}\n{steps}\n{rest}\n[targets.raspberry-pi]\nartifacts = ["onnx:static_wi8_ai8"]\n')
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The small demo as a newcomer builds it."""
    demo = ["demo", "--model", "cnn-small"]
    return read_built(once(tmp_path_factory, "demo-cnn-small", lambda folder: build(demo, folder)))


def _float_p50(built: Built) -> float:
    found: float = built.report["compression"]["original"]["p50_ms"]
    return found


@pytest.mark.nightly
def test_half_of_the_work_goes_for_at_most_half_a_point(small: Built) -> None:
    compression = small.report["compression"]
    original, last = compression["original"], compression["steps"][-1]["after"]
    assert original["score"] > 0.99
    assert last["macs"] <= 0.5 * original["macs"]
    for artifact in small.report["artifacts"]:
        task = artifact["evidence"]["task"]
        if task is not None:
            assert task["reference"] == original["score"]
            assert task["drop_points"] <= 0.5, artifact["artifact"]


@pytest.mark.nightly
def test_an_int8_file_is_seven_times_smaller_than_the_float_original(small: Built) -> None:
    best = max(
        item["times_smaller"] for item in small.report["artifacts"] if ":static_wi8" in item["artifact"]
    )
    assert best >= 7
    assert small.report["model"]["float_bytes"] == small.report["compression"]["original"]["size_bytes"]


@pytest.mark.nightly
def test_every_step_is_told_alone_and_together(small: Built) -> None:
    steps = small.report["compression"]["steps"]
    assert [step["method"] for step in steps] == ["prune", "distill", "qat"]
    before = small.report["compression"]["original"]
    for step in steps:
        assert step["before"] == before
        assert step["trainings"]
        before = step["after"]
    assert steps[0]["changed"]["score"] < steps[0]["after"]["score"], "training brought it back"


@pytest.mark.nightly
def test_all_targets_receive_it(small: Built) -> None:
    assert small.targets == ("android", "ios", "raspberry-pi")
    kinds = {item["artifact"].partition(":")[0] for item in small.report["artifacts"]}
    assert kinds == {"onnx", "ort", "tflite", "mlpackage"}


@pytest.mark.nightly
def test_docs_describe_every_key_of_compression_and_no_other(small: Built) -> None:
    text = (ROOT / "docs" / "report.md").read_text()
    section = text.partition("## What compression adds")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    documented = {key for row in rows for key in re.findall(r"`(compression[^`]+)`", row)}
    free = {key.partition(".*")[0] for key in documented if ".*" in key}
    present = set(_keys(small.report["compression"], "compression", free))
    optional = {key for key in present if any(other.startswith(f"{key}.") for other in documented)}
    assert present - optional == documented - {"compression.steps[].notes[]"} | (
        present & {"compression.steps[].notes[]"}
    )


def _keys(value: Any, path: str, free: set[str]) -> Any:
    if path in free:
        yield f"{path}.*"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _keys(item, f"{path}.{key}", free)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item, f"{path}[]", free)
    else:
        yield path


@pytest.mark.nightly
def test_the_compressed_torch_model_can_be_loaded_again(small: Built) -> None:
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from exporter.compress.steps import rebuild
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import read_recipe
    from exporter.stages.load import load
    from targets.discovery import get_target

    recipe = read_recipe(demo_recipe("cnn-small"))
    source = load(make_plan(recipe, {"raspberry-pi": get_target("raspberry-pi")}), log=Path(os.devnull))
    edits = [json.loads(path.read_text()) for path in sorted((small.path / "torch").glob("*.json"))]
    module = rebuild(source, edits)
    module.load_state_dict(load_file(small.path / "torch" / "weights.safetensors"))
    with np.load(DEMO / "data" / "evaluation.npz") as data:
        image, label = torch.from_numpy(data["image"]), data["label"]
    with torch.no_grad():
        score = float((module.eval()(image).argmax(1).numpy() == label).mean())
    assert score == pytest.approx(small.report["compression"]["steps"][-1]["after"]["score"], abs=0.006)


def _weights(out: Path) -> bytes:
    return (out / "digits-cnn-small" / "1.0.0" / "torch" / "weights.safetensors").read_bytes()


@pytest.mark.nightly
def test_a_killed_training_goes_on_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    _copy_demo(tmp_path)
    recipe = _recipe(tmp_path, f"[[compress]]\n{FEW_EPOCHS}")
    undisturbed = edge_export("build", recipe, "--out", tmp_path / "whole", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert undisturbed.returncode == 0, undisturbed.stderr

    out = tmp_path / "killed"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_STATE_HOME": str(tmp_path),
    }
    arguments = [sys.executable, "-m", "exporter", "build", str(recipe), "--out", str(out)]
    child = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    kept = out / "digits-cnn-small" / ".edge-compression-1.0.0"
    deadline = time.monotonic() + 300
    while not any(path.name.startswith("checkpoint") for path in kept.rglob("*")):
        assert child.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "digits-cnn-small" / "1.0.0").exists()

    resumed = edge_export("build", recipe, "--out", out, "--resume", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert resumed.returncode == 0, resumed.stderr
    assert _weights(out) == _weights(tmp_path / "whole")
    report = json.loads((out / "digits-cnn-small" / "1.0.0" / "report.json").read_text())
    assert report["compression"]["steps"][0]["trainings"][0]["resumed"]
    assert not kept.exists()


@pytest.mark.nightly
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    _copy_demo(tmp_path)
    recipe = _recipe(tmp_path, f"[[compress]]\n{FEW_EPOCHS}")
    # On CPUs accelerate starts several processes under this name only; --cpu asks mpirun for them.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    arguments = ["-m", "exporter", "build", str(recipe), "--out", str(tmp_path / "out"), "--json"]
    result = subprocess.run(
        [*launcher, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    report = reported(json.loads(result.stdout))
    training = report["compression"]["steps"][0]["trainings"][0]
    assert training["processes"] == 2
    assert report["compression"]["steps"][0]["after"]["score"] > 0.98


@pytest.mark.nightly
def test_a_training_that_diverges_is_stopped_and_named(tmp_path: Path) -> None:
    _copy_demo(tmp_path)
    steps = FEW_EPOCHS.replace("learning_rate = 1e-3", 'learning_rate = 1e30, optimizer = "sgd"')
    recipe = _recipe(tmp_path, f"[[compress]]\n{steps}")
    result = edge_export("build", recipe, "--out", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 14, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error[E-gate]:")
    assert "learning" in line
    assert not (tmp_path / "out" / "digits-cnn-small" / "1.0.0").exists()

"""A build with a budget, end to end: climbed, traced, written down, and taken up by the next recipe."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from report_ground import reported

from exporter.cli import main

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
[model]
name = "digits-vit"
version = "1.0.0"
factory = "models.py:build_vit"
weights = "weights/digits-vit.safetensors"
[[model.inputs]]
name = "image"
shape = ["batch", 1, 32, 32]
[data]
calibration = {{ source = "npz", path = "data/calibration.npz", samples = 64 }}
evaluation = {{ source = "npz", path = "unlabelled.npz" }}
[quantize]
scheme = "weight_only_wi4_b32"
{quantize}
[targets.raspberry-pi]
artifacts = ["onnx:weight_only_wi4_b32", "onnx:static_wi8_ai8"]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo with evaluation pictures that have no labels: agreement with the float model is judged."""
    folder = tmp_path_factory.mktemp("budget") / "project"
    shutil.copytree(ROOT / "exporter" / "demo", folder)
    text = (folder / "digits-vit.toml").read_text()
    factory = re.search(r'factory\s*=\s*"([^"]+)"', text)
    weights = re.search(r'weights\s*=\s*"([^"]+)"', text)
    assert factory is not None and weights is not None
    with np.load(folder / "data" / "evaluation.npz") as arrays:
        np.savez(folder / "unlabelled.npz", image=arrays["image"])
        shape = list(arrays["image"].shape[1:])
    recipe = RECIPE.replace("models.py:build_vit", factory[1]).replace(
        "weights/digits-vit.safetensors", weights[1]
    )
    (folder / "template.toml").write_text(recipe.replace("1, 32, 32", ", ".join(map(str, shape))))
    return folder


def build(project: Path, quantize: str, out: Path) -> tuple[int, Any, str]:
    recipe = project / "recipe.toml"
    recipe.write_text((project / "template.toml").read_text().format(quantize=quantize))
    result = CliRunner().invoke(main, ["build", str(recipe), "--out", str(out), "--json"])
    answer = json.loads(result.stdout) if result.stdout else {}
    return result.exit_code, answer, result.stderr


@pytest.fixture(scope="module")
def kept(project: Path) -> tuple[Path, Any]:
    code, answer, stderr = build(project, "max_drop = 0.0", project / "out")
    assert code == 0, stderr
    return Path(answer["path"]), reported(answer)


def test_the_budget_is_kept_by_what_ships(kept: tuple[Path, Any]) -> None:
    _, report = kept
    assert {recovery["scheme"] for recovery in report["recovery"]} == {
        "weight_only_wi4_b32",
        "static_wi8_ai8",
    }
    for recovery in report["recovery"]:
        assert recovery["metric"] == "agreement" and recovery["samples"] == 540
        assert recovery["rungs"][-1]["holds"] and recovery["rungs"][-1]["drop"]["points"] <= 0
    for artifact in report["artifacts"]:
        assert artifact["evidence"]["disagreement"]["points"] <= 0
    gates = {gate["gate"]: gate for gate in report["gates"] if gate["artifact"] == "onnx:static_wi8_ai8"}
    assert gates["max_drop"]["passed"] and gates["int32 accumulators"]["passed"]


def test_integer_kernels_were_really_made(kept: tuple[Path, Any]) -> None:
    _, report = kept
    kernels = {
        artifact["artifact"]: artifact["evidence"]["structure"]["kernels"] for artifact in report["artifacts"]
    }
    assert kernels["onnx:weight_only_wi4_b32"]["MatMulNBits"] > 10
    assert kernels["onnx:static_wi8_ai8"]["QLinearConv"] >= 1


def test_docs_describe_every_key_of_a_recovery_and_no_other(kept: tuple[Path, Any]) -> None:
    text = (
        (ROOT / "docs" / "report.md").read_text().partition("## What a budget adds")[2].partition("\n## ")[0]
    )
    documented = set(re.findall(r"`(recovery\[\][^`]+)`", text))
    present: set[str] = set()
    for recovery in kept[1]["recovery"]:
        for key, value in recovery.items():
            if key != "rungs":
                present.add(f"recovery[].{key}" + "[]" * isinstance(value, list))
        for rung in recovery["rungs"]:
            for key, value in rung.items():
                suffix = "[]" if isinstance(value, list) else ".*" if key in {"drop", "details"} else ""
                present.add(f"recovery[].rungs[].{key}{suffix}")
    assert present == documented


@pytest.mark.nightly
def test_a_budget_that_only_float_layers_keep_is_written_down_and_taken_up(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporter.recover import rungs

    for method in list(rungs._METHODS_OF):
        monkeypatch.setitem(rungs._METHODS_OF, method, ())
    code, answer, stderr = build(project, 'max_drop = 0.0\nrule = "entropy"', project / "spared")
    assert code == 0, stderr
    spared = {recovery["scheme"]: recovery for recovery in answer["report"]["recovery"]}
    int4 = spared["weight_only_wi4_b32"]
    assert int4["left_float"] or int4["widened"]
    for scheme, recovery in spared.items():
        written = Path(answer["path"]) / f"keep-{scheme}.txt"
        assert written.exists() == bool(recovery["left_float"])
    if int4["left_float"]:
        listed = Path(answer["path"]) / "keep-weight_only_wi4_b32.txt"
        shutil.copyfile(listed, project / "keep.txt")
        code, again, stderr = build(project, 'keep_from = "keep.txt"', project / "taken")
        assert code == 0, stderr
        reasons = again["report"]["artifacts"][0]["coverage"]["left_float"]
        assert any("kept in float by the recipe" in reason for reason in reasons)

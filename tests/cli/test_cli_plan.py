"""What `build --plan`, `demo --plan`, `targets` and `schema` answer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from exporter.bundle.report import json_schema as report_schema
from exporter.recipe.recipe import json_schema
from exporter.schemes import KNOWN_SCHEMES
from targets.discovery import BUILT_IN

Call = Callable[..., Result]

PLAN = """\
tiny 1.0.0  from net.py:build (factory)

would make
artifact            for          run by
onnx:static_wi8_ai8 android      onnxruntime-cpu
                    raspberry-pi onnxruntime-cpu
onnx:float32@fixed  android      onnxruntime-cpu, onnxruntime-xnnpack

calibration  npz calibration.npz; ranges by auto
evaluation   none; metric agreement with the float model

nothing was made; to make it
  edge-export build recipe.toml
"""


def test_a_plan_says_what_is_made_for_whom_and_how_to_make_it(recipe: Path, call: Call) -> None:
    result = call("build", recipe.name, "--plan")
    assert (result.exit_code, result.stdout, result.stderr) == (0, PLAN, "")
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["net.py", "recipe.toml"]


def test_a_plan_is_a_document_with_json(recipe: Path, call: Call) -> None:
    assert json.loads(call("build", recipe, "--plan", "--json").stdout) == {
        "model": {"name": "tiny", "version": "1.0.0", "source": "net.py:build"},
        "origin": "factory",
        "targets": ["android", "raspberry-pi"],
        "artifacts": [
            {
                "artifact": "onnx:static_wi8_ai8",
                "file": "tiny-static_wi8_ai8.onnx",
                "wanted_by": {"android": ["onnxruntime-cpu"], "raspberry-pi": ["onnxruntime-cpu"]},
            },
            {
                "artifact": "onnx:float32@fixed",
                "file": "tiny-float32-fixed.onnx",
                "wanted_by": {"android": ["onnxruntime-cpu", "onnxruntime-xnnpack"]},
            },
        ],
        "refused": [],
        "needs_calibration": True,
        "calibration": "npz calibration.npz",
        "evaluation": None,
        "metric": None,
        "training": None,
        "compress": [],
        "quantize": {
            "scheme": "static_wi8_ai8",
            "rule": "auto",
            "keep": [],
            "recover": [],
            "max_drop": None,
            "max_drop_verdict": "measured",
            "conv_int4": False,
        },
    }


def test_targets_are_chosen_among_the_recipes(recipe: Path, call: Call) -> None:
    result = call("build", recipe, "--plan", "--json", "--target", "raspberry-pi")
    plan = json.loads(result.stdout)
    assert plan["targets"] == ["raspberry-pi"]
    assert [planned["wanted_by"] for planned in plan["artifacts"]] == [{"raspberry-pi": ["onnxruntime-cpu"]}]


def test_a_target_without_a_table_gets_its_defaults(recipe: Path, call: Call) -> None:
    plan = json.loads(call("build", recipe, "--plan", "--json", "--target", "ios").stdout)
    assert plan["targets"] == ["ios"]
    assert "mlpackage:float16" in {planned["artifact"] for planned in plan["artifacts"]}


def test_the_command_to_make_it_keeps_the_targets(recipe: Path, call: Call) -> None:
    result = call("build", recipe.name, "--plan", "--target", "android")
    assert result.stdout.endswith("  edge-export build recipe.toml --target android\n")


def test_an_unknown_target_offers_the_near_names(recipe: Path, call: Call) -> None:
    result = call("build", recipe, "--plan", "--target", "andriod")
    assert result.exit_code == 2
    assert "no target is called 'andriod'; fix: use one of android" in result.stderr


def test_what_a_model_file_cannot_become_is_refused_with_the_reason(
    recipe: Path, tiny_onnx: Path, call: Call
) -> None:
    text = recipe.read_text().replace('factory = "net.py:build"', 'path = "tiny.onnx"')
    recipe.write_text(text.partition("[targets.android]")[0] + "[targets.raspberry-pi]\n")
    result = call("build", recipe, "--plan")
    assert result.exit_code == 0
    refused = " ".join(result.stdout.partition("refused\n")[2].partition("calibration")[0].split())
    assert refused == (
        "artifact for because tflite:static_wi8_ai8 raspberry-pi .tflite is converted from the torch module, and "
        "this model came as ONNX"
    )


def test_code_in_a_model_file_is_refused_already_in_the_plan(recipe: Path, call: Call) -> None:
    recipe.write_text(recipe.read_text().replace('factory = "net.py:build"', 'path = "model.pt2"'))
    assert call("build", recipe, "--plan").exit_code == 11
    trusted = call("build", recipe, "--plan", "--trust-code")
    assert (trusted.exit_code, "model.pt2 does not exist" in trusted.stderr) == (10, True)


@pytest.mark.parametrize("hostile", ["\\u001b[31mred.py", "[bold]x[red].py", "\\u202eyp.x.py", "a\\u0007.py"])
def test_terminal_escapes_and_markup_in_names_are_inert(recipe: Path, call: Call, hostile: str) -> None:
    name = json.loads(f'"{hostile}"')
    recipe.with_name("net.py").rename(recipe.with_name(name))
    recipe.write_text(recipe.read_text().replace("net.py", hostile))
    stdout = call("build", recipe, "--plan").stdout
    assert stdout.replace("\n", "").isprintable()
    assert "[bold]x[red].py" in stdout or "\\" in stdout


@pytest.mark.parametrize("model", ["cnn", "vit"])
def test_the_demo_can_be_planned(model: str, call: Call) -> None:
    result = call("demo", "--model", model, "--plan")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"digits-{model} ")
    assert result.stdout.endswith(f"  edge-export demo --model {model}\n")
    assert max(map(len, result.stdout.splitlines())) <= 80


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make `modules` look as if they were not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in modules else found(name, *rest)
    )


def test_the_demo_leaves_out_what_is_not_installed_and_says_how_to_get_it(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "coremltools")
    plan = json.loads(call("demo", "--plan", "--json").stdout)
    assert "mlpackage" not in {planned["artifact"].partition(":")[0] for planned in plan["artifacts"]}
    reason = (
        ".mlpackage files need coremltools, which is not installed; "
        "run: pip install 'edge-exporter[coreml]', or: edge-export setup coreml"
    )
    assert plan["refused"] == [
        {"target": "ios", "artifact": artifact, "reason": reason}
        for artifact in ("mlpackage:float16", "mlpackage:weight_only_wi8")
    ]


@pytest.mark.parametrize("arguments", [["demo", "--format", "mlpackage"], ["build", "--target", "ios"]])
def test_what_was_asked_for_and_is_not_installed_is_an_error(
    recipe: Path, call: Call, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    without(monkeypatch, "coremltools")
    extra = [recipe] if arguments[0] == "build" else []
    result = call(*arguments, *extra, "--plan")
    assert result.exit_code == 12
    assert "run: pip install 'edge-exporter[coreml]'" in result.stderr


def test_the_demo_makes_the_formats_and_targets_that_are_asked_for(call: Call) -> None:
    options = ["--format", "onnx", "--format", "ort", "--target", "android", "--target", "raspberry-pi"]
    plan = json.loads(call("demo", *options, "--plan", "--json").stdout)
    assert {planned["artifact"].partition(":")[0] for planned in plan["artifacts"]} == {"onnx", "ort"}
    assert plan["targets"] == ["android", "raspberry-pi"]
    assert {refusal["reason"] for refusal in plan["refused"]} == {"only onnx, ort was asked for"}
    again = call("demo", *options, "--plan").stdout.splitlines()[-1]
    assert again == (
        "  edge-export demo --model cnn --target android --target raspberry-pi --format onnx --format ort"
    )


def test_targets_tells_the_same_to_people_and_machines(call: Call) -> None:
    document = json.loads(call("targets", "--json").stdout)
    assert [target["name"] for target in document["targets"]] == list(BUILT_IN)
    assert document["unavailable"] == []
    text = call("targets").stdout
    for target in document["targets"]:
        assert target["data_version"] and target["default_artifacts"]
        for runtime in target["runtimes"]:
            assert runtime["runtime"] in text
            assert (
                runtime["schemes"]
                == [scheme for scheme in KNOWN_SCHEMES if scheme in runtime["schemes"]]
                != []
            )
        for artifact in target["default_artifacts"]:
            assert artifact in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_target_that_cannot_be_used_is_named_and_hides_no_other(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("targets.discovery.BUILT_IN", {**BUILT_IN, "fridge": "targets.fridge:TARGET"})
    result = call("targets")
    assert result.exit_code == 0
    assert (
        "target fridge of edge-exporter cannot be used: loading it failed with ModuleNotFoundError"
        in result.stderr
    )
    assert "onnxruntime-cpu" in result.stdout


def test_schema_is_the_recipes(call: Call) -> None:
    assert json.loads(call("schema").stdout) == json_schema()
    assert call("schema", "recipe").stdout == call("schema").stdout


def test_schema_can_be_a_reports(call: Call) -> None:
    assert json.loads(call("schema", "report").stdout) == report_schema()
    assert call("schema", "reports").exit_code == 2

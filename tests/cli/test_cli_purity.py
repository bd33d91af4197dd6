"""What the light commands must not load: it is what makes them start at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_ground import run_python

FRAMEWORKS = {
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "litert_torch",
    "coremltools",
    "jax",
    "transformers",
    "jinja2",
}

SCRIPT = """
import json, sys
from exporter.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    status = end.code
roots = sorted({name.partition(".")[0] for name in sys.modules})
print("\\n" + json.dumps({"status": status, "modules": roots}), file=sys.stderr)
"""


def loaded_by(*arguments: str) -> set[str]:
    _, _, stderr = run_python(SCRIPT, *arguments)
    outcome = json.loads(stderr.splitlines()[-1])
    assert outcome["status"] == 0, stderr
    return set(outcome["modules"])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["build", "--help"], []])
def test_help_loads_nothing_but_click(arguments: list[str]) -> None:
    assert loaded_by(*arguments).isdisjoint(FRAMEWORKS | {"pydantic", "rich", "numpy"})


@pytest.mark.parametrize(
    "arguments", [["targets"], ["targets", "--json"], ["schema"], ["schema", "report"], ["demo", "--plan"]]
)
def test_light_commands_load_no_framework(arguments: list[str]) -> None:
    assert loaded_by(*arguments).isdisjoint(FRAMEWORKS)


def test_a_plan_loads_no_framework_and_runs_no_factory(recipe: Path) -> None:
    assert loaded_by("build", str(recipe), "--plan").isdisjoint(FRAMEWORKS)
    assert not (recipe.parent / "ran").exists()
    assert not (recipe.parent / "edge-build").exists()

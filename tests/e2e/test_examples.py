"""Every recipe in examples/ is a plan, and builds what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_ground import ROOT, build

from exporter.recipe.planning import make_plan
from exporter.recipe.recipe import read_recipe
from targets.discovery import get_target

EXAMPLES = sorted((ROOT / "examples").glob("*/recipe.toml"))
LEAST = {"text": 0.65, "mobile-engineer": 0.95, "audio-keywords": 0.94}
"""What the exported file scores at least; 0.98 where nothing is said."""
QUICK = {"mobile-engineer", "audio-keywords"}


def name(recipe: Path) -> str:
    """Return what an example is called."""
    return recipe.parent.name


@pytest.mark.parametrize("recipe", EXAMPLES, ids=name)
def test_an_example_can_be_planned_without_an_extra_format(recipe: Path) -> None:
    read = read_recipe(recipe)
    plan = make_plan(read, {target: get_target(target) for target in read.targets})
    assert plan.refused == ()
    assert not plan.needs_program
    assert f"]({name(recipe)}/recipe.toml)" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=[] if name(path) in QUICK else [pytest.mark.nightly]) for path in EXAMPLES],
    ids=name,
)
def test_an_example_builds_and_is_accurate(recipe: Path, tmp_path: Path) -> None:
    built = build(["build", recipe], tmp_path)
    planned = read_recipe(recipe)
    assert built.targets == tuple(sorted(planned.targets))
    for artifact in built.report["artifacts"]:
        assert artifact["evidence"]["task"]["value"] >= LEAST.get(name(recipe), 0.98), artifact["artifact"]
    quantized = [item for item in built.report["artifacts"] if "float32" not in item["artifact"]]
    assert all(item["times_smaller"] > 2 for item in quantized) and quantized

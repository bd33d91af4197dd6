"""Names and versions that become file names: one rule refuses whatever is not one (exit 2)."""

from __future__ import annotations

import json

import pytest
from fault_ground import Ground, snapshot

HOSTILE = [
    "../x", "..", ".", "", "-rf", "a;b", "$(id)", "`id`", "a\nb", "a b", "/etc/passwd", "a/../../b", "x" * 300,
    "a\x00b", "C:\\x", "ＡＢＣ", "a\u202eb", "~root", "a..b", "\ufeffa", "CON:",
]  # fmt: skip


@pytest.mark.parametrize("key", ["name", "version"])
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_names_and_versions_are_refused_before_anything_is_touched(
    ground: Ground, key: str, value: str
) -> None:
    everything = snapshot(ground.folder.parent)
    ground.write_recipe(model={key: json.dumps(value)})
    ground.fails(2, f"model.{key}")
    after = {**snapshot(ground.folder.parent), "ground/recipe.toml": everything["ground/recipe.toml"]}
    assert {name for name in after if not name.startswith("state")} == set(everything)


@pytest.mark.parametrize(
    "version", ["1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-..", "1.0.0+", "latest"]
)
def test_versions_that_are_not_semver_are_refused(ground: Ground, version: str) -> None:
    ground.write_recipe(model={"version": json.dumps(version)})
    ground.fails(2, "model.version", "SemVer")


@pytest.mark.parametrize(
    "version", ["0.0.0", "1.2.3-rc.1", "1.2.3+build.5", "1.2.3-alpha-1+x.y-z", "10.20.30"]
)
def test_semver_is_taken(ground: Ground, version: str) -> None:
    ground.write_recipe(model={"version": json.dumps(version)})
    code, _, stderr = ground.build("--plan", "--json")
    assert code == 0, stderr


@pytest.mark.parametrize("target", ["../x", "-rf", "a;b", "raspberry-pj"])
def test_targets_that_do_not_exist_are_refused(ground: Ground, target: str) -> None:
    ground.write_recipe(targets=f"[targets.{json.dumps(target)}]")
    ground.fails(2, target)

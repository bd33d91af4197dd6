"""Fixtures of the fault tests: one finished build for the session, and a copy of it for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fault_ground import Ground, copy_ground, lay_ground

from exporter.model.source import SourceModel


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Return a ground whose build is finished; never to be changed."""
    ground = lay_ground(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(ground.folder.parent / "state"))
        ground.succeeds()
    return ground


@pytest.fixture
def ground(finished: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """Return a copy of the finished ground, with logs and temporary files of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")
    return copy_ground(finished, tmp_path / "ground")


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SourceModel]:
    """Return a function that plans a ground's recipe and loads its model, without building."""
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import read_recipe
    from exporter.stages.load import load as load_stage
    from targets.discovery import get_target

    def run(ground: Ground, *, trust_code: bool = False) -> SourceModel:
        recipe = read_recipe(ground.recipe)
        plan = make_plan(recipe, {name: get_target(name) for name in recipe.targets}, trust_code=trust_code)
        return load_stage(plan, log=tmp_path / "load.log")

    return run

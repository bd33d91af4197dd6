"""Fixtures of the registry's tests: caches and memories of their own, and a registry with one published build."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_ground import make_build

from exporter.progress import Silence
from exporter.registry.publishing import publish
from exporter.registry.stores.opening import open_store


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a client remembers and caches inside the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the bundles of one build; never to be changed."""
    return make_build(tmp_path_factory.mktemp("build"))


@pytest.fixture
def registry(build: list[Path], tmp_path: Path) -> Path:
    """Return a folder in which that build is published."""
    root = tmp_path / "registry"
    publish(build, open_store(str(root)), sign_with=None, progress=Silence())
    return root


@pytest.fixture
def small(build: list[Path], tmp_path: Path) -> Path:
    """Return a folder in which one bundle of that build is published, for tests that check it many times over."""
    root = tmp_path / "registry"
    bundles = [path for path in build if path.name == "raspberry-pi"]
    publish(bundles, open_store(str(root)), sign_with=None, progress=Silence())
    return root

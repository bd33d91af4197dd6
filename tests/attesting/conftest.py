"""For the session: two small builds (a recipe that says much, and one that says little), two pairs of keys, a signature."""

from __future__ import annotations

import shutil

import pytest
from attesting_ground import BARE, FOLDER, Built, build, make_project
from signing_ground import CONTENT, NAME, Pair


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build with labels, licence, description and preprocessing, for two targets."""
    home = tmp_path_factory.mktemp("told") / FOLDER
    return build(make_project(home / "project"), home / "out")


@pytest.fixture(scope="session")
def bare(told: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build of an ONNX file without data, labels, licence or description."""
    home = tmp_path_factory.mktemp("bare") / FOLDER
    recipe = make_project(home / "project", BARE)
    shutil.copy(told.path / "ios" / "models" / "tiny-float32-fixed.onnx", recipe.parent / "float.onnx")
    return build(recipe, home / "out")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("keys") / "first")


@pytest.fixture(scope="session")
def successor(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("keys") / "second", "secp384r1")


@pytest.fixture(scope="session")
def signature(pair: Pair) -> bytes:
    pytest.importorskip("model_signing", reason="pip install 'edge-exporter[signing]'")
    from exporter.attesting.signatures import sign_document

    return sign_document(CONTENT, NAME, pair.private)

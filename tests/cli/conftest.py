"""Fixtures for tests of the command line: a state folder of their own, inputs, and a way to call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from cli_ground import RECIPE, make_tiny
from click.testing import CliRunner, Result

from exporter.cli import main


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run each test in an empty folder, with logs of its own, at 80 columns."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder


@pytest.fixture
def call() -> Callable[..., Result]:
    """Return a function that runs the command line in this process."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def recipe(workplace: Path) -> Path:
    """Return a sound recipe whose factory leaves a mark if anybody runs it."""
    (workplace / "net.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    path = workplace / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def tiny_onnx(workplace: Path) -> Path:
    """Return an ONNX file of one Conv, Relu, Flatten and Gemm: 4·1·3·3 and 256·10 weights, batch dynamic."""
    path = workplace / "tiny.onnx"
    onnx.save(make_tiny(), path)
    return path

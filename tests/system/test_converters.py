"""A converter's own environment: found when it fits, refused when it does not, used, told of, made and removed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import exporter
from exporter.artifacts import Format
from exporter.attesting.libraries import makers_of, taking_part
from exporter.cli import main
from exporter.errors import UnsupportedError, UsageError
from exporter.system.converters import making
from exporter.system.converters.catalogue import CONVERTERS, Converter
from exporter.system.converters.environment import (
    conditions_of,
    home_of,
    missing_for,
    own_environment,
    version_of,
)
from exporter.system.isolation import call_isolated

LITERT = CONVERTERS["litert"]


@pytest.fixture(autouse=True)
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this environment one in which nothing was set up yet."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    return tmp_path / "prefix"


def pretend(converter: Converter, **changes: Any) -> Path:
    """Leave what a finished environment leaves, and return its folder."""
    home = home_of(converter)
    (home / "shared").mkdir(parents=True)
    versions = {"litert-torch": "0.10.9", "numpy": "2.0.1", "xdsl": "0.28.0"}
    contents = {"made_for": conditions_of(converter), "versions": versions, **changes}
    (home / "contents.json").write_text(json.dumps(contents))
    return home


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make `modules` look as if they were not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in modules else found(name, *rest)
    )


def test_there_is_none_until_it_is_set_up() -> None:
    assert [own_environment(kind) for kind in Format] == [None] * 4
    pretend(LITERT)
    assert [kind for kind in Format if own_environment(kind) is not None] == [Format.TFLITE]


@pytest.mark.parametrize("changed", ["torch", "pins"])
def test_one_that_was_made_for_something_else_is_refused(changed: str) -> None:
    pretend(LITERT, made_for={**conditions_of(LITERT), changed: "1"})
    with pytest.raises(UnsupportedError, match="was made for") as caught:
        own_environment(Format.TFLITE)
    assert caught.value.fix == "run: edge-export setup litert"
    assert str(missing_for(Format.TFLITE)) == str(caught.value), "a plan says it, before anything is loaded"


def test_with_one_only_what_reads_the_files_is_needed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "litert_torch", "litert_quantizer")
    error = missing_for(Format.TFLITE)
    assert error is not None
    assert error.cause == ".tflite files need litert_torch, litert_quantizer, which is not installed"
    assert "pip install 'edge-exporter[litert]'" in error.fix
    assert "edge-export setup litert" in error.fix
    pretend(LITERT)
    assert missing_for(Format.TFLITE) is None
    without(monkeypatch, "ai_edge_litert")
    error = missing_for(Format.TFLITE)
    assert error is not None
    assert error.fix == "run: pip install 'edge-exporter[litert-runtime]'"


def test_it_is_given_the_code_that_runs_here() -> None:
    home = pretend(LITERT)
    package = Path(exporter.__file__).resolve().parent
    own = own_environment(Format.TFLITE)
    assert own is not None
    assert own.variables == {"PYTHONPATH": str(package.parent)}
    (home / "shared" / "exporter").symlink_to(package)
    assert own.variables == {"PYTHONPATH": ""}, (
        "an installed package has its neighbours' other versions beside it"
    )


def test_a_job_runs_in_the_interpreter_that_is_named(tmp_path: Path) -> None:
    python, mark = tmp_path / "python", tmp_path / "ran"
    python.write_text(f'#!/bin/sh\ntouch "{mark}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    request = {"path": str(tmp_path / "nothing.onnx")}
    with pytest.raises(Exception, match="has no attribute"):
        call_isolated("json:nothing", request, stage="a", subject="b", log=tmp_path / "log", python=python)
    assert mark.exists()


def test_its_versions_are_told_where_it_writes_the_bytes() -> None:
    here = importlib.metadata.version("numpy")
    assert makers_of(Format.TFLITE, from_torch=True, compressed_by=())["numpy"] == here
    pretend(LITERT)
    assert version_of("litert-torch") == "0.10.9"
    assert version_of("numpy") == here
    assert version_of("no-such-distribution") == "absent"
    made_by = makers_of(Format.TFLITE, from_torch=True, compressed_by=())
    assert (made_by["litert-torch"], made_by["numpy"]) == ("0.10.9", "2.0.1")
    assert makers_of(Format.ONNX, from_torch=True, compressed_by=())["numpy"] == here
    assert {("xdsl", "0.28.0"), ("numpy", "2.0.1"), ("numpy", here)} <= set(taking_part([Format.TFLITE]))
    assert ("numpy", "2.0.1") not in taking_part([Format.ONNX])


def test_it_is_removed_and_then_is_not_there() -> None:
    home = pretend(LITERT)
    result = CliRunner().invoke(main, ["setup", "litert", "--remove", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"removed": True})
    assert not home.exists()
    assert json.loads(CliRunner().invoke(main, ["setup", "litert", "--remove", "--json"]).stdout) == {
        "removed": False
    }


def test_setting_up_says_what_this_environment_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "ai_edge_litert")
    with pytest.raises(UnsupportedError, match="read and run with ai_edge_litert") as caught:
        making.set_up(LITERT, print)
    assert "pip install 'edge-exporter[litert-runtime]'" in caught.value.fix


def test_a_python_that_is_none_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*snake"):
        making.set_up(LITERT, lambda line: None, python=tmp_path / "snake")
    assert [path for path in home_of(LITERT).parent.iterdir() if path.is_dir()] == []


@pytest.mark.nightly
def test_one_is_made_with_the_torch_and_the_code_of_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "small.txt"
    pins.write_text("# nothing but what is shared\n")
    monkeypatch.setattr(making, "pins_of", lambda converter: pins)
    small = Converter("coreml", modules=("torch",), distributions=("torch",))
    made = making.set_up(small, lambda line: None)
    script = "import torch, exporter; print(torch.__version__, exporter.__file__)"
    ran = subprocess.run([made.python, "-c", script], env={}, capture_output=True, text=True, check=True)
    version, path = ran.stdout.split()
    assert version == importlib.metadata.version("torch") == made.versions["torch"]
    assert Path(path).resolve() == Path(exporter.__file__).resolve()
    before = (made.home / "contents.json").stat().st_ino
    assert making.set_up(small, lambda line: None) == made
    assert (made.home / "contents.json").stat().st_ino == before, "what fits is not made again"
    (made.home / "bin" / "python").unlink()
    assert making.set_up(small, lambda line: None) == made
    assert (made.home / "bin" / "python").exists(), "what does not run is"

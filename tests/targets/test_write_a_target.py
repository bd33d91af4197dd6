"""The page that tells third parties how to write a target is true: its code is installed and run."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from exporter.artifacts import ArtifactSpec
from targets.base import Target
from targets.conformance import breaches, sample_request
from targets.discovery import GROUP, all_targets, get_target

PAGE = Path(__file__).parents[2] / "docs" / "write-a-target.md"


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def kiosk(register: Callable[..., Path]) -> Iterator[Target]:
    """The page's target, installed as the page's pyproject.toml says and found through its entry point."""
    (entry,) = tomllib.loads(blocks("toml")[0])["project"]["entry-points"][GROUP].items()
    name, (module, _) = entry[0], entry[1].split(":")
    register(name, module, blocks("python")[0], distribution="acme-kiosk")
    yield get_target(name)
    sys.modules.pop(module)


def test_the_example_is_found_beside_the_built_in_targets(kiosk: Target) -> None:
    assert "kiosk" in all_targets()
    assert kiosk.summary == "x86 kiosks: onnxruntime on the CPU"


def test_the_example_conforms(kiosk: Target, tmp_path: Path) -> None:
    assert breaches(kiosk, tmp_path) == ()


def test_the_test_on_the_page_passes(kiosk: Target, tmp_path: Path) -> None:
    page: dict[str, Callable[[Path], None]] = {}
    exec(compile(blocks("python")[1], str(PAGE), "exec"), page)

    page["test_conformance"](tmp_path)


def test_the_recipe_on_the_page_is_accepted(kiosk: Target) -> None:
    table = tomllib.loads(blocks("toml")[1])["targets"]["kiosk"]

    options = kiosk.options_model.model_validate(table)
    capabilities = kiosk.capabilities(options)
    assert options.artifacts is not None
    assert [capabilities.refusal(ArtifactSpec.parse(text)) for text in options.artifacts] == [None, None]
    with pytest.raises(ValidationError):
        kiosk.options_model.model_validate(table | {"servcie": "x"})


def test_the_example_writes_what_it_says(kiosk: Target, tmp_path: Path) -> None:
    options = kiosk.options_model.model_validate({"service": "front-desk"})

    kiosk.bundle(sample_request(kiosk, tmp_path / "bundle", options=options))

    service = json.loads((tmp_path / "bundle" / "service.json").read_text())
    assert service["service"] == "front-desk"
    assert (tmp_path / "bundle" / service["model"]).is_file()


def test_the_example_is_one_file_without_frameworks(kiosk: Target) -> None:
    module = importlib.import_module("kiosk_target")
    imported = set(re.findall(r"^(?:from|import) (\w+)", blocks("python")[0], re.MULTILINE))

    assert imported <= {"__future__", "json", "dataclasses", "exporter", "targets"}
    assert module.TARGET is kiosk

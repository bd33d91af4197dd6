"""The recipe keys that documents are filled from: a licence that is one, a description of one paragraph, a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from exporter.errors import RecipeError
from exporter.recipe.recipe import Recipe, json_schema, read_recipe

MINIMAL = """
[model]
{more}
name = "tiny"
version = "1.0.0"
path = "net.onnx"
"""


def read(tmp_path: Path, more: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL.format(more=more), encoding="utf-8")
    return read_recipe(path)


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("Apache-2.0", "Apache-2.0"),
        ("apache-2.0", "Apache-2.0"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("LicenseRef-Ours", "LicenseRef-Ours"),
    ],
)
def test_a_license_is_spelled_as_spdx_spells_it(tmp_path: Path, written: str, taken: str) -> None:
    assert read(tmp_path, f'license = "{written}"').model.license == taken


@pytest.mark.parametrize("written", ["", "Apache", "our own", "MIT AND", "MIT\\nMIT", "(MIT", "x" * 300])
def test_what_is_no_license_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.license: "):
        read(tmp_path, f'license = "{written}"')


@pytest.mark.parametrize("written", ["", " ", "two\\nlines", "bell\\u0007", "x" * 3000])
def test_a_description_is_one_paragraph(tmp_path: Path, written: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.description: "):
        read(tmp_path, f'description = "{written}"')
    assert read(tmp_path, 'description = "Größen – 数字"').model.description == "Größen – 数字"


def test_both_may_be_absent_and_are_in_the_schema(tmp_path: Path) -> None:
    model = read(tmp_path, "").model
    assert (model.license, model.description) == (None, None)
    assert {"license", "description"} <= set(json_schema()["$defs"]["ModelTable"]["properties"])


def test_a_recipe_knows_the_digest_of_its_file_and_nobody_can_write_it(tmp_path: Path) -> None:
    recipe = read(tmp_path, "")
    assert recipe.sha256 == hashlib.sha256((tmp_path / "recipe.toml").read_bytes()).hexdigest()
    assert "sha256" not in recipe.model_dump()
    assert "sha256" not in json_schema()["properties"]
    path = tmp_path / "forged.toml"
    path.write_text('sha256 = "00"\n' + MINIMAL.format(more=""))
    with pytest.raises(RecipeError, match="sha256: unknown key"):
        read_recipe(path)

"""The documents point at things that exist, and hold nothing unfinished."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from exporter.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"@@|TODO|FIXME|XXX", text)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", ROOT / "docs" / "recipe.md"], ids=lambda path: path.name
)
def test_the_recipes_in_the_documents_are_recipes(document: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        Recipe.model_validate(tomllib.loads(block))

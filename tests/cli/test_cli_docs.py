"""The pages that are generated from the code say what the code says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cli_ground import ROOT

from exporter.cli import COMMANDS
from exporter.cli.reference import command_line_page, error_classes, errors_page


@pytest.mark.parametrize(
    ("name", "page"), [("errors.md", errors_page), ("command-line.md", command_line_page)]
)
def test_the_page_is_what_the_code_says(name: str, page: Callable[[], str]) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == page(), "run: python -m exporter.cli.reference docs"


def test_nothing_is_left_out() -> None:
    assert all(f"## edge-export {name}\n" in command_line_page() for name in COMMANDS)
    assert all(f"| {kind.exit_code} | `{kind.code}` |" in errors_page() for kind in error_classes())

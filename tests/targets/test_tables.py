"""The documentation's table is the data's, not somebody's memory of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.artifacts import Format
from exporter.errors import InputError
from exporter.schemes import KNOWN_SCHEMES
from targets.discovery import BUILT_IN, get_target
from targets.tables import (
    BEGIN,
    END,
    capability_document,
    capability_table,
    columns,
    main,
    replace_document,
)

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"
TARGETS = {name: get_target(name) for name in sorted(BUILT_IN)}


def test_the_page_equals_the_data() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert replace_document(text, capability_document(TARGETS)) == text, (
        "docs/targets.md is behind the data; run: python -m targets.tables docs/targets.md"
    )


def test_the_table_has_every_artifact_and_a_verdict_in_each_cell() -> None:
    lines = capability_table(columns(TARGETS)).splitlines()

    assert lines[0] == '| artifact | `android` | `ios` | `ios`, `minimum = "18"` | `raspberry-pi` |'
    rows = {line.split("|")[1].strip(" `"): line.split("|")[2:-1] for line in lines[2:]}
    assert set(rows) == {f"{item}:{scheme}" for item in Format for scheme in KNOWN_SCHEMES}
    for artifact, cells in rows.items():
        for cell in cells:
            assert cell.strip() in {"never", "not yet"} or cell.startswith(" **runs**: "), (artifact, cell)
    assert [cell.strip() for cell in rows["mlpackage:weight_only_wi4_b32"]] == [
        "never",
        "not yet",
        "**runs**: coreml",
        "never",
    ]


def test_every_not_yet_and_never_of_a_built_in_target_has_a_reason() -> None:
    for title, capabilities in columns(TARGETS).items():
        for line in capability_table({title: capabilities}).splitlines()[2:]:
            _, artifact, verdict, _ = (part.strip() for part in line.split("|"))
            if not verdict.startswith("**runs**"):
                name, scheme = artifact.strip("`").split(":")
                found = [
                    item for item in capabilities.exclusions if item.format == name and scheme in item.schemes
                ]
                assert found, f"{title}: {artifact} is {verdict} without a reason"


def test_rewrites_a_page_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")

    assert main([str(page)]) == 0
    assert main([]) == 0

    document = capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{document}{END}\nafter\n"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(InputError, match="lacks"):
        replace_document(f"{END} {BEGIN}", "new")

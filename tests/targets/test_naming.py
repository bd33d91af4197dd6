"""Names and literals in generated source: whatever users call things, the source stays well-formed."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import naming


@given(st.lists(st.text(), max_size=8))
def test_value_names_are_distinct_identifiers_and_no_keywords(texts: list[str]) -> None:
    names = naming.value_names(texts)

    assert len(set(names)) == len(texts)
    for name in names:
        assert re.fullmatch(r"[a-z][A-Za-z0-9]*", name)
        assert name not in naming.KEYWORDS


@given(st.text(), st.text())
def test_type_names_are_identifiers(first: str, second: str) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", naming.type_name("m", first, second))


@given(st.text())
def test_kotlin_strings_say_the_text_and_hold_no_interpolation(text: str) -> None:
    literal = naming.kotlin_string(text)

    assert literal.isascii()
    assert not re.search(r"(?<!\\)(\\\\)*\$", literal)
    assert json.loads(literal.replace("\\$", "$")) == text


@given(st.text())
def test_swift_strings_say_the_text_and_hold_no_interpolation(text: str) -> None:
    literal = naming.swift_string(text)

    assert literal.isascii()
    decoded = re.sub(
        r'\\u\{([0-9A-F]+)\}|\\(["\\])',
        lambda match: chr(int(match[1], 16)) if match[1] else match[2],
        literal[1:-1],
    )
    assert decoded == text
    assert not re.search(r"(?<!\\)(\\\\)*\\\(", literal)


@given(st.text())
def test_cells_of_a_table_say_the_text_and_cannot_be_closed(text: str) -> None:
    cell = naming.cell(text)

    assert cell.replace("\\|", "|") == text
    assert not re.search(r"(?<!\\)\|", cell)


@given(st.text())
def test_comments_stay_on_one_line_and_cannot_be_closed(text: str) -> None:
    comment = naming.comment(text)

    assert len(comment.splitlines()) <= 1
    assert "*/" not in comment
    assert "/*" not in comment


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("digits", "static_wi8_ai8-fixed", "Onnx"), "DigitsStaticWi8Ai8FixedOnnx"),
        (("3d.net", "float16", "CoreML"), "Model3dNetFloat16CoreML"),
    ],
)
def test_type_names_read_well(parts: tuple[str, ...], name: str) -> None:
    assert naming.type_name(*parts) == name


def test_value_names_read_well() -> None:
    texts = ["image", "input_ids", "in", "2nd", "a.b", "a_b", "", "é"]

    assert naming.value_names(texts) == [
        "image",
        "inputIds",
        "inValue",
        "tensor2nd",
        "aB",
        "aB2",
        "tensorValue",
        "tensorValue2",
    ]

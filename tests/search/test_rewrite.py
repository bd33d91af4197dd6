"""A tuned recipe is the author's text with some values changed, or at worst the same tables written anew."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.search.rewrite import inline, moved_references, rewritten, toml_text
from exporter.search.space import set_at

TEXT = """\
# A recipe.
title = "x"   # kept

[model]
name    = "a # b"     # a comment with = and "quotes"

[[compress]]
method = "prune"
ratio  = 0.3          # a third

[[compress]]
method = "distill"
train  = { epochs = 5, loss = "auto" }  # short
layers = [            # names
  "one",   # first
  "two",
]
# about to quantise

[quantize]
scheme = "static_wi8_ai8" # for ARM
keep = []
"""


def changed(text: str, values: dict[str, Any]) -> tuple[str, bool]:
    wanted = tomllib.loads(text)
    for key, value in values.items():
        set_at(wanted, key, value)
    result, kept = rewritten(text, wanted, values)
    assert tomllib.loads(result) == wanted
    return result, kept


@pytest.mark.parametrize(
    ("values", "old", "new"),
    [
        ({"compress.0.ratio": 0.5}, "ratio  = 0.3          # a third", "ratio  = 0.5          # a third"),
        (
            {"compress.1.train.epochs": 9},
            'train  = { epochs = 5, loss = "auto" }  # short',
            'train  = { epochs = 9, loss = "auto" }  # short',
        ),
        ({"compress.0.train.epochs": 2}, "# a third\n", "# a third\ntrain = { epochs = 2 }\n"),
        ({"quantize.keep": ["head.*", 'a"b']}, "keep = []", 'keep = ["head.*", "a\\"b"]'),
        ({"quantize.rule": "mse"}, "keep = []\n", 'keep = []\nrule = "mse"\n'),
        ({"training.epochs": 3}, "keep = []\n", "keep = []\n\n[training]\nepochs = 3\n"),
        ({"title": "y#z"}, 'title = "x"   # kept', 'title = "y#z"   # kept'),
        (
            {"compress.1.layers": ["three"]},
            'layers = [            # names\n  "one",   # first\n  "two",\n]',
            'layers = ["three"]',
        ),
    ],
)
def test_only_the_value_changes(values: dict[str, Any], old: str, new: str) -> None:
    assert changed(TEXT, values) == (TEXT.replace(old, new), True)


def test_several_values_change_together() -> None:
    result, kept = changed(
        TEXT, {"compress.0.ratio": 0.6, "quantize.scheme": "float16", "compress.1.soft": 0.5}
    )
    assert kept
    assert result.count("\n") == TEXT.count("\n") + 1


@pytest.mark.parametrize(
    "text",
    [
        'quantize.scheme = "a"  # dotted\n',
        '"quantize" = { scheme = "a" } # inline\n',
        '[ "quantize" ]  # spaced\n\'scheme\'="a"#tight\n',
        '[quantize.deep]\nx = 1\n[quantize]\nscheme = """a\n[quantize]\nscheme = 2"""\n',
    ],
)
def test_other_ways_to_write_the_same(text: str) -> None:
    result, kept = changed(text, {"quantize.scheme": "b"})
    assert kept
    assert result.count("#") == text.count("#")


@pytest.mark.parametrize(
    "text", ['compress = [{ method = "prune", ratio = 0.3 }] # list\n', "[a.b]\n[[a.c]]\nd = 1\n"]
)
def test_unusual_texts_still_say_what_is_meant(text: str) -> None:
    changed(text, {"quantize.scheme": "b"})
    if "compress" in text:
        assert changed(text, {"compress.0.ratio": 0.5})[1]


def test_a_step_left_out_is_written_anew() -> None:
    wanted = tomllib.loads(TEXT)
    del wanted["compress"][1]
    result, kept = rewritten(TEXT, wanted, {"compress.1": False})
    assert (tomllib.loads(result), kept) == (wanted, False)


def test_references_move_with_the_recipe() -> None:
    tables = {
        "model": {"factory": "net.py:build", "weights": "w/a.safetensors", "name": "path.py:x"},
        "data": {"training": {"path": "../t.npz"}, "validation": {"path": "/abs/v.npz"}, "metric": "top1"},
        "compress": [{"teacher": "pkg.mod:build"}, {"history": "h.json"}],
    }
    assert moved_references(tables, Path("/r"), Path("/r/out/s")) == {
        "model.factory": "../../net.py:build",
        "model.weights": "../../w/a.safetensors",
        "data.training.path": "../../../t.npz",
        "compress.1.history": "../../h.json",
    }


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), VALUES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_is_written_reads_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(tables)) == tables


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_any_value_fits_into_its_line(value: Any) -> None:
    assert tomllib.loads(f"x = {inline(value)}") == {"x": value}
    result, kept = changed('[quantize]\nscheme = "a" # why\n', {"quantize.scheme": value})
    assert kept
    assert result.endswith(" # why\n")

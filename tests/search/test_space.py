"""The space: what no recipe can say is refused before any work, and a variant is the recipe with its values set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from search_ground import RECIPE, question_of

from exporter.errors import RecipeError
from exporter.recipe.tune import KnobTable


def with_space(lines: str) -> str:
    return RECIPE.partition("[tune.space]")[0] + "[tune.space]\n" + lines


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"compress.0.ratoi" = [0.3]', "compress.0.prune.ratoi is no key of a recipe"),
        ('"compress.1.ratio" = [0.3]', "the recipe has 1 steps in [[compress]], and there is no 1"),
        ('"compress.0.ratio" = { low = 0.5, high = 1.5 }', "less than 1 (with compress.0.ratio = 1.5)"),
        ('"compress.0.rounds" = { low = 1.0, high = 3.0 }', "valid integer"),
        ('"compress.0.importance" = ["magnitude", "size"]', "(with compress.0.importance = size)"),
        ('"compress.0.remove_macs" = [0.5]', "exactly one goal"),
        ('"quantize.scheme" = ["static_wi8_ai9"]', "no scheme is called 'static_wi8_ai9'"),
        ('"training.epochs.more" = [1]', "training.epochs"),
        (
            '"model.name" = ["a"]',
            "cannot be searched: write the path of a key in compress, training, quantize",
        ),
        ('"compress.0.ratio" = { low = 0.5, high = 0.2 }', "low (0.5) must be below high (0.2)"),
        ('"compress.0.ratio" = { low = 0.5 }', "give low and high, or choices"),
        ('"compress.0.ratio" = []', "choices is empty"),
        ('"compress.0" = [false]\n"compress.0.ratio" = [0.5]', "are searched both"),
        ("", "at least one key"),
    ],
)
def test_a_space_that_no_recipe_can_take_is_refused_by_name(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        question_of(tmp_path, with_space(line))
    assert caught.value.exit_code == 2
    assert said in str(caught.value)


def test_a_recipe_without_a_space_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no \[tune\].*compress.0.remove_macs"):
        question_of(tmp_path, RECIPE.partition("[tune]")[0])


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ('["speed"]', "no objective is called 'speed'"),
        ('["metric", "metric"]', "named twice"),
        ('["device:p90_ms"]', "needs measure"),
    ],
)
def test_objectives_are_known_ones(tmp_path: Path, objectives: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        question_of(tmp_path, RECIPE.replace('["metric", "size"]', objectives))


def test_a_variant_is_the_recipe_with_its_values_set(tmp_path: Path) -> None:
    space = question_of(tmp_path).space
    variant = space.variant(
        {"compress.0.ratio": 0.6, "compress.0.train.epochs": 2, "quantize.keep": ["head.*"]}
    )
    own = space.variant({})
    assert variant.compress[0].ratio == 0.6  # type: ignore[union-attr]
    assert variant.compress[0].train.epochs == 2  # type: ignore[union-attr]
    assert variant.quantize.keep == ("head.*",)
    assert variant.folder == tmp_path.resolve()
    assert (own.compress[0].ratio, own.quantize.keep) == (0.3, ())  # type: ignore[union-attr]


def test_a_step_may_be_another_one_or_none(tmp_path: Path) -> None:
    lines = '"compress.0" = [false, { method = "factorize", max_error = 0.2 }]'
    knob, space = (question := question_of(tmp_path, with_space(lines))).space.knobs[0], question.space
    assert [knob.value(drawn) for drawn in knob.distribution().choices] == list(knob.table.choices or ())  # type: ignore[attr-defined]
    assert space.variant({"compress.0": False}).compress == ()
    assert space.variant({"compress.0": knob.table.choices[1]}).compress[0].method == "factorize"  # type: ignore[index]


def test_whole_numbers_stay_whole_and_steps_leave_no_rounding(tmp_path: Path) -> None:
    ratio, epochs, _ = question_of(tmp_path).space.knobs
    assert ratio.value(0.1 + 2 * 0.1) == 0.3
    assert isinstance(epochs.value(3.0), int)
    assert KnobTable.model_validate({"low": 1, "high": 4}).is_whole
    assert not KnobTable.model_validate({"low": 1, "high": 4, "step": 0.5}).is_whole


@pytest.mark.parametrize(
    ("change", "own"),
    [
        (
            "epochs = 3",
            {"compress.0.ratio": 0.3, "compress.0.train.epochs": 3, "compress.0.importance": "magnitude"},
        ),
        ("epochs = 9", None),
    ],
)
def test_the_recipes_own_values_are_known_where_they_lie_in_the_space(
    tmp_path: Path, change: str, own: dict[str, Any] | None
) -> None:
    text = RECIPE.replace("[[compress]]", f"[training]\n{change}\n[[compress]]")
    assert question_of(tmp_path, text).space.own_values() == own


def test_a_value_between_the_steps_is_not_in_the_space(tmp_path: Path) -> None:
    ratio = question_of(tmp_path).space.knobs[0]
    assert ratio.drawn(0.7) == 0.7
    for outside in (0.35, 0.9, "0.3", True):
        with pytest.raises(KeyError):
            ratio.drawn(outside)

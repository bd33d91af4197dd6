"""The space of a search: keys of a recipe by their paths, what values they take, and the recipe that has them.

A variant is the recipe's own text with some keys set, read by the recipe's own models: what no recipe can say,
no trial can try, and that is found out before any work.
"""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from exporter.errors import RecipeError
from exporter.recipe.compression import training_of
from exporter.recipe.recipe import Recipe
from exporter.recipe.tune import KnobTable
from exporter.search.trial import Values

if TYPE_CHECKING:
    import optuna

_LEFT_OUT = False
"""As the value of `compress.N`: this step is not part of the variant."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One key and its values, in the order the recipe gives them."""

    key: str
    table: KnobTable

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return what Optuna draws from; choices that are no scalars travel as their JSON text."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        table = self.table
        if table.choices is not None:
            return CategoricalDistribution([_as_category(choice) for choice in table.choices])
        if table.low is None or table.high is None:
            raise TypeError(f"{self.key} has neither choices nor bounds")
        if table.is_whole:
            return IntDistribution(int(table.low), int(table.high), log=table.log, step=int(table.step or 1))
        step = None if table.step is None else float(table.step)
        return FloatDistribution(float(table.low), float(table.high), log=table.log, step=step)

    def value(self, drawn: Any) -> Any:
        """Return the key's value for what Optuna drew or stored."""
        if self.table.choices is not None:
            return next(choice for choice in self.table.choices if _as_category(choice) == drawn)
        if self.table.is_whole:
            return int(drawn)
        # low + n·step accumulates rounding, and nobody wants 0.30000000000000004 in a recipe.
        return float(f"{drawn:.12g}")

    def drawn(self, value: Any) -> Any:
        """Return what Optuna stores for `value`, or raise `KeyError` if it lies outside this knob's values."""
        table = self.table
        if table.choices is not None:
            if not any(_as_category(choice) == _as_category(value) for choice in table.choices):
                raise KeyError(self.key)
            return _as_category(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise KeyError(self.key)
        low, high = float(table.low or 0), float(table.high or 0)
        steps = (value - low) / float(table.step) if table.step else 0.0
        if not low <= value <= high or not math.isclose(steps, round(steps), abs_tol=1e-9):
            raise KeyError(self.key)
        if table.is_whole and not isinstance(value, int):
            raise KeyError(self.key)
        return value

    def samples(self) -> tuple[Any, ...]:
        """Return the values that stand for all: every choice, or both ends and one between them."""
        table = self.table
        if table.choices is not None:
            return table.choices
        low, high = float(table.low or 0), float(table.high or 0)
        # Between the ends lies what a whole-number key refuses of a knob written with decimals.
        inside = low + float(table.step) if table.step else low + 0.37 * (high - low)
        return tuple(self.value(value) for value in (low, min(inside, high), high))

    def describe(self) -> str:
        """Return the values as one phrase."""
        table = self.table
        if table.choices is not None:
            return " | ".join(_phrase(choice) for choice in table.choices)
        step = " (log)" if table.log else "" if table.step is None else f" in steps of {table.step:g}"
        return f"{table.low:g} to {table.high:g}{step}"


def _as_category(choice: Any) -> str | int | float | bool | None:
    if choice is None or isinstance(choice, str | int | float | bool):
        return choice
    return json.dumps(choice, sort_keys=True)


def _phrase(choice: Any) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)


@dataclass(frozen=True, slots=True)
class Space:
    """The searched keys of one recipe: `tables` is the recipe as TOML gave it, `folder` where its paths start."""

    tables: Mapping[str, Any]
    folder: Path
    knobs: tuple[Knob, ...]

    def variant(self, values: Values) -> Recipe:
        """Return the recipe with `values` set; `RecipeError` names the key that the recipe's models refuse."""
        try:
            recipe = Recipe.model_validate(self.tables_with(values))
        except ValidationError as error:
            raise _refused(error, values) from error
        return recipe.model_copy(update={"folder": self.folder})

    def tables_with(self, values: Values) -> dict[str, Any]:
        """Return the recipe's tables with `values` set; steps set to `false` are left out."""
        tables = copy.deepcopy(dict(self.tables))
        for key, value in values.items():
            set_at(tables, key, copy.deepcopy(value))
        if "compress" in tables:
            tables["compress"] = [step for step in tables["compress"] if step is not _LEFT_OUT]
        return tables

    def own_values(self) -> dict[str, Any] | None:
        """Return the values that the recipe itself has for every key, or `None` if one lies outside the space."""
        recipe = self.variant({})
        try:
            return {knob.key: knob.value(knob.drawn(_own_value(recipe, knob.key))) for knob in self.knobs}
        except (KeyError, IndexError, TypeError):
            return None


def _own_value(recipe: Recipe, key: str) -> Any:
    """Return what `recipe` has at `key`; a step trains as `[training]` says where it says nothing itself."""
    parts = key.split(".")
    if parts[0] == "compress" and parts[2:3] == ["train"] and len(parts) == 4:
        training = training_of(recipe.compress[int(parts[1])], recipe.training)
        return get_at({} if training is None else training.model_dump(mode="json"), parts[3])
    return get_at(recipe.model_dump(mode="json"), key)


def read_tables(path: Path) -> dict[str, Any]:
    """Return the TOML tables of a recipe that `exporter.recipe.recipe.read_recipe` has read before."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def make_space(tables: Mapping[str, Any], folder: Path, space: Mapping[str, KnobTable]) -> Space:
    """Return the space, in which the recipe's models take every key at its ends, between them, and at every choice.

    Raises `RecipeError` naming the key, the value and what is wrong with it.
    """
    made = Space(tables, folder, tuple(Knob(key, table) for key, table in space.items()))
    for knob in made.knobs:
        for value in knob.samples():
            _try(made, knob.key, value)
    return made


def _try(space: Space, key: str, value: Any) -> None:
    try:
        variant = space.variant({key: value})
        if value is not _LEFT_OUT:
            get_at(variant.model_dump(mode="json"), key)
    except RecipeError as error:
        raise RecipeError(f'[tune.space] "{key}": {error.cause}', fix=error.fix) from error
    except (KeyError, IndexError, TypeError) as error:
        raise RecipeError(
            f'[tune.space] "{key}" is no key of this recipe',
            fix="write the path of a key that the recipe may have",
        ) from error


def _refused(error: ValidationError, values: Values) -> RecipeError:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return RecipeError(f"{where} is no key of a recipe", fix="edge-export schema lists the keys")
    given = ", ".join(f"{key} = {_phrase(value)}" for key, value in values.items())
    return RecipeError(f"{where}: {message} (with {given})", fix="correct the key's values in [tune.space]")


# --- keys by path ----------------------------------------------------------------------------------------


def set_at(tables: dict[str, Any], key: str, value: Any) -> None:
    """Set the key at the path `key` (`compress.0.train.epochs`); missing tables on the way are made.

    Raises `RecipeError` when the path leads through something that is no table, or past the end of a list.
    """
    *way, last = key.split(".")
    place: Any = tables
    for number, part in enumerate(way):
        place = _step_into(place, part, key, make=[] if [*way, last][number + 1].isdigit() else {})
    if isinstance(place, list):
        index = _index(place, last, key)
        place[index] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"{key}: {'.'.join(way)} is no table", fix="write the path of a key of the recipe")


def _step_into(place: Any, part: str, key: str, *, make: Any) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, key)]
    if not isinstance(place, dict):
        raise RecipeError(
            f"{key}: there is no table before {part!r}", fix="write the path of a key of the recipe"
        )
    return place.setdefault(part, make)


def _index(steps: Sequence[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(steps):
        raise RecipeError(
            f"{key}: the recipe has {len(steps)} steps in [[compress]], and there is no {part}",
            fix="count the steps from 0, and write the ones to be searched into the recipe",
        )
    return int(part)


def get_at(tables: Mapping[str, Any], key: str) -> Any:
    """Return what is at the path `key`; `KeyError`, `IndexError` or `TypeError` if there is no such place."""
    place: Any = tables
    for part in key.split("."):
        place = place[int(part)] if isinstance(place, list) and part.isdigit() else place[part]
    return place

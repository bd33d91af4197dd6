"""The recipe: strict at every level, and described by its own schema."""

from __future__ import annotations

import copy
import importlib.resources
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import RecipeError
from exporter.recipe.recipe import json_schema, read_recipe

DEMO = Path(str(importlib.resources.files("exporter"))) / "demo"
RECIPES = sorted(DEMO.glob("*.toml"))

MINIMAL = """
[model]
name = "tiny"
version = "1.0.0"
factory = "net.py:build"
[[model.inputs]]
name = "x"
shape = ["batch", 4]
"""


def _read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def test_there_are_demo_recipes() -> None:
    assert sorted(path.stem for path in RECIPES) == ["digits-cnn", "digits-cnn-small", "digits-vit"]


@pytest.mark.parametrize(
    ("addition", "where", "near"),
    [
        ("modle = 1\n", "modle", "model"),
        ("[gate]\nmin_sqnr_db = 1", "gate", "gates"),
        ("[gates]\nmin_sqnr = 1", "gates.min_sqnr", "min_sqnr_db"),
        ('[quantize]\nschema = "x"', "quantize.schema", "scheme"),
        ("[data]\ncalibraton = {}", "data.calibraton", "calibration"),
        ('[[model.inputs]]\nname = "y"\nshape = [1]\ndtyp = "x"', "model.inputs.1.dtyp", "dtype"),
    ],
)
def test_unknown_keys_give_their_path_and_near_names(
    tmp_path: Path, addition: str, where: str, near: str
) -> None:
    text = addition + MINIMAL if addition.startswith("modle") else MINIMAL + addition
    with pytest.raises(RecipeError) as caught:
        _read(tmp_path, text)
    assert f": {where}: unknown key" in caught.value.cause
    assert near in caught.value.fix


def test_an_unknown_key_of_the_model_gives_near_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.wieghts: unknown key.*weights"):
        _read(tmp_path, MINIMAL.replace("[model]", '[model]\nwieghts = "x"'))


@pytest.mark.parametrize("table", ["model", "data", "quantize", "gates", ""])
@given(key=st.from_regex(r"[a-z_]{3,12}", fullmatch=True))
def test_no_unknown_key_is_ever_taken(tmp_path_factory: pytest.TempPathFactory, table: str, key: str) -> None:
    schema = json_schema()
    known = schema["properties"] if not table else schema["$defs"][f"{table.title()}Table"]["properties"]
    if key in known:
        return
    text = f'{key} = "x"\n{MINIMAL}' if not table else MINIMAL
    if table == "model":
        text = MINIMAL.replace("[model]", f'[model]\n{key} = "x"')
    elif table:
        text += f'[{table}]\n{key} = "x"\n'
    with pytest.raises(RecipeError, match="unknown key"):
        _read(tmp_path_factory.getbasetemp(), text)


@pytest.mark.parametrize(
    ("line", "replacement", "said"),
    [
        ('factory = "net.py:build"', "", "either factory"),
        ('factory = "net.py:build"', 'factory = "net.py"', "callable"),
        ('factory = "net.py:build"', 'path = "a.pt"\nweights = "b.pt"', "weights go with a factory"),
        ('shape = ["batch", 4]', "shape = [0, 4]", "model.inputs.0.shape"),
        ('shape = ["batch", 4]', 'shape = ["a b"]', "model.inputs.0.shape"),
        ('shape = ["batch", 4]', "shape = [nan]", "model.inputs.0.shape"),
        ('version = "1.0.0"', 'version = "1.0.0"\nload_timeout_s = inf', "load_timeout_s"),
        ('version = "1.0.0"', 'version = "1.0.0"\nload_timeout_s = 0', "load_timeout_s"),
        ('version = "1.0.0"', "", "model.version: missing"),
        (
            'shape = ["batch", 4]',
            'shape = [1]\n[[model.inputs]]\nname = "x"\nshape = [1]',
            "called x"),
    ],
)  # fmt: skip
def test_nonsense_is_named(tmp_path: Path, line: str, replacement: str, said: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.toml") as caught:
        _read(tmp_path, MINIMAL.replace(line, replacement))
    assert said in caught.value.cause


@pytest.mark.parametrize("text", ["[model", "a = [" * 3000, "\x00", "model = 3", "= 1"])
def test_what_is_no_recipe_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError):
        _read(tmp_path, text)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_recipe(tmp_path / "r.toml")


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(RecipeError, match=r"did you mean .*recipe\.toml"):
        read_recipe(tmp_path / "recipes.toml")


def test_a_file_too_large_for_a_recipe_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(RecipeError, match="too large"):
        read_recipe(path)


# --- the schema ------------------------------------------------------------------------------------------


def _check(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> list[str]:
    """Return what is wrong with `value` under the part of JSON Schema that Pydantic writes."""
    if "$ref" in schema:
        return _check(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            tries = [_check(value, option, root, path) for option in schema[key]]
            return [] if any(not wrong for wrong in tries) else tries[0]
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [f"{path}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    wrong: list[str] = []
    if isinstance(value, dict):
        known = schema.get("properties", {})
        wrong += [f"{path}: {key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in known:
                wrong += _check(item, known[key], root, f"{path}.{key}")
            elif schema.get("additionalProperties") is False:
                wrong.append(f"{path}: {key} is unknown")
            elif isinstance(schema.get("additionalProperties"), dict):
                wrong += _check(item, schema["additionalProperties"], root, f"{path}.{key}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            wrong += _check(item, schema["items"], root, f"{path}[{index}]")
    return wrong


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_takes_the_demo_recipes_and_no_misspelling_of_them(path: Path) -> None:
    schema = json_schema()
    tables = tomllib.loads(path.read_text())
    assert read_recipe(path).model.name == tables["model"]["name"]
    assert _check(tables, schema, schema) == []
    for table in ("model", "data", "quantize", "gates"):
        broken = copy.deepcopy(tables)
        broken.setdefault(table, {})["misspelled"] = 1
        assert _check(broken, schema, schema), table
    assert _check({**tables, "misspelled": {}}, schema, schema)
    assert "folder" not in schema["properties"]

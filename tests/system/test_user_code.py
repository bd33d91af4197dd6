"""The user's own code: found, imported with its neighbours, called, and blamed by line."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import targets
from exporter.errors import CalibrationError, EdgeError, GateError, InputError, RecipeError
from exporter.system import user_modules
from exporter.system.user_code import UserCallable, load_callable, source_digest
from exporter.system.user_modules import importable

Load = Callable[[str], UserCallable]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads a reference of a recipe in `tmp_path`."""

    def run(reference: str) -> UserCallable:
        return load_callable(reference, tmp_path, key="data.metric", fix="mend it")

    return run


def _write(folder: Path, **files: str) -> None:
    """Write Python files; `_in_` in a name ends it, and a folder's name follows."""
    for name, text in files.items():
        stem, _, inside = name.partition("_in_")
        path = folder / inside / f"{stem}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- one module for each file ----------------------------------------------------------------------------


def test_a_file_is_imported_under_a_name_of_its_own(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, targets="def value():\n    return 3\n")
    found = load("targets.py:value")
    assert found() == 3
    assert found.function.__module__ != "targets"
    assert sys.modules["targets"] is targets


def test_all_who_name_a_file_get_the_same_module(tmp_path: Path, load: Load) -> None:
    _write(
        tmp_path,
        net="import dataclasses\n@dataclasses.dataclass\nclass Net:\n    width: 'int' = 3\n",
        metric="import net\nfrom kinds.labels import Label\nfrom net import Net\ndef score():\n    return Net, Label\n",
        labels_in_kinds="class Label: ...\n",
    )
    first = load("net.py:Net")
    assert load("net.py:Net").function is first.function
    assert load("metric.py:score")() == (first.function, load("kinds/labels.py:Label").function)
    assert load("kinds.labels:Label").function is load("kinds/labels.py:Label").function
    assert pickle.loads(pickle.dumps(first())) == first()


def test_an_edited_file_is_loaded_anew_with_all_who_knew_it(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, net="from layers import WIDTH\ndef width():\n    return WIDTH\n", layers="WIDTH = 1\n")
    other = "import net\ndef width():\n    return net.width()\n"
    _write(tmp_path, other=other)
    assert (load("net.py:width")(), load("other.py:width")()) == (1, 1)
    _write(tmp_path, layers="WIDTH = 2\n")  # of the same size, and in the same second
    assert (load("net.py:width")(), load("other.py:width")()) == (2, 2)
    (tmp_path / "layers.py").unlink()
    with pytest.raises(InputError, match="No module named 'layers'"):
        load("net.py:width")


def test_a_file_that_fails_is_not_left_half_imported(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, broken="value = 1\nraise RuntimeError('no')\n", knows="import broken\ndef f(): ...\n")
    for reference, line in (("broken.py:value", "broken.py line 2"), ("knows.py:f", "broken.py line 2")) * 2:
        with pytest.raises(InputError, match=rf"RuntimeError: no \({line}\)"):
            load(reference)
    assert not any(name.startswith(("_edge_user_broken", "_edge_user_knows")) for name in sys.modules)


def test_nothing_is_left_beside_the_users_files_or_in_the_interpreter(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, net="import layers\ndef f():\n    import deeper.still\n", layers="", still_in_deeper="")
    path, names = list(sys.path), {name for name in sys.modules if not name.startswith("_edge_user_")}
    load("net.py:f")()
    assert sys.path == path
    assert {name for name in sys.modules if not name.startswith("_edge_user_")} == names
    assert not list(tmp_path.rglob("__pycache__"))


# --- neighbours ------------------------------------------------------------------------------------------


def test_neighbours_are_found_beside_the_file_and_beside_the_recipe(tmp_path: Path, load: Load) -> None:
    _write(
        tmp_path,
        net_in_models="import layers, common\ndef f():\n    return layers.NAME, common.NAME\n",
        layers_in_models="NAME = 'of models'\n",
        layers="NAME = 'of the recipe'\n",
        common="from layers import NAME\n",
    )
    assert load("models/net.py:f")() == ("of models", "of the recipe")


def test_neighbours_of_one_name_in_two_folders_are_two(tmp_path: Path, load: Load) -> None:
    body = "import helpers\ndef f():\n    import helpers as again\n    return helpers.NAME, again.NAME\n"
    for folder in ("a", "b"):
        _write(tmp_path / folder, file=body, helpers=f"NAME = '{folder}'\n")
    first, second = load("a/file.py:f"), load("b/file.py:f")
    assert [first(), second(), first()] == [("a", "a"), ("b", "b"), ("a", "a")]


PACKAGE = {
    "__init___in_animals": "from .birds import Bird\nfrom animals.fish import Fish\n",
    "birds_in_animals": "from . import fish\nclass Bird:\n    swims_with = fish.Fish\n",
    "fish_in_animals": "class Fish:\n    def eat(self):\n        from .food import FOOD\n        return FOOD\n",
    "food_in_animals": "FOOD = 'flies'\n",
}


def test_a_package_beside_the_recipe_is_one_package(tmp_path: Path, load: Load) -> None:
    _write(
        tmp_path,
        **PACKAGE,
        use="import animals.fish\nimport animals\ndef f():\n    return animals.Fish().eat(), animals.fish.Fish\n",
    )
    fish = load("animals.fish:Fish").function
    assert load("use.py:f")() == ("flies", fish)
    assert load("animals.birds:Bird.swims_with").function is fish
    assert load("animals/fish.py:Fish").function is fish
    assert load("animals/__init__.py:Fish").function is fish


def test_a_folder_without_init_is_a_package_too(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(
        tmp_path / "recipe", net_in_models="from .parts import Part\n", parts_in_models="class Part: ...\n"
    )
    _write(
        tmp_path / "recipe",
        use="from models.parts import Part\ndef f():\n    import models.net\n    return models.net.Part is Part\n",
    )
    assert load_callable("use.py:f", tmp_path / "recipe", key="k", fix="f")()
    (tmp_path / "path" / "models").mkdir(parents=True)
    monkeypatch.syspath_prepend(
        str(tmp_path / "path")
    )  # a folder on Python's path is no package that is installed
    assert load_callable("models.net:Part", tmp_path / "recipe", key="k", fix="f").function.__name__ == "Part"
    assert len(source_digest("models.net:Part", tmp_path / "recipe")) == 64
    del sys.modules["models"]


def test_files_that_import_each_other_in_a_circle_work(tmp_path: Path, load: Load) -> None:
    _write(
        tmp_path,
        one="import two\nNAME = 'one'\ndef f():\n    return two.g()\n",
        two="import one\ndef g():\n    return one.NAME\n",
    )
    assert load("one.py:f")() == "one"


def test_neighbours_are_the_users_alone(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, net="import only_mine\ndef f(call):\n    return call()\n", only_mine="")

    def import_it() -> None:
        import only_mine  # type: ignore[import-not-found]  # noqa: F401

    found = load("net.py:f")
    with pytest.raises(ModuleNotFoundError):
        import_it()
    # What stands between the user's code and an import may be a library; it may not be ours.
    import_it.__globals__["__name__"], mine = "exporter.stages.data", __name__
    try:
        with pytest.raises(InputError, match="No module named 'only_mine'"):
            found(import_it)
    finally:
        import_it.__globals__["__name__"] = mine
    found(import_it)


def test_a_pickle_finds_the_users_classes_while_he_is_asked_for(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, layers="class Block:\n    def __eq__(self, other):\n        return True\n")
    stored = b"clayers\nBlock\n."  # protocol 0: the class, by its name
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(stored)
    with importable(tmp_path):
        assert pickle.loads(stored) is load("layers.py:Block").function


def test_an_installed_name_comes_first_and_the_advice_is_to_rename(tmp_path: Path, load: Load) -> None:
    _write(
        tmp_path,
        targets="def make(): ...\n",
        click="def make(): ...\n",
        early="from targets import make\n",
        late="import targets, click\ndef ours():\n    targets.make()\ndef theirs():\n    return click.make()\n",
        deep="import exporter.my_layers\n",
        my_layers_in_exporter="",
    )
    for call, file in (
        (lambda: load("early.py:f"), "targets.py"),
        (load("late.py:ours"), "targets.py"),
        (load("late.py:theirs"), "click.py"),
        (lambda: load("deep.py:f"), "exporter"),
    ):
        with pytest.raises(InputError, match=r"(early|late|deep)\.py") as caught:
            call()
        assert caught.value.fix.startswith(f"rename {tmp_path / file}: ")


def test_an_error_of_the_users_own_gets_no_such_advice(tmp_path: Path, load: Load) -> None:
    _write(
        tmp_path,
        net="import layers, json\ndef f(name):\n    {'layers': layers, 'json': json}[name].absent()\n",
    )
    _write(tmp_path, layers="")
    (tmp_path / "json").mkdir()  # of data, as any folder may be
    for name in ("layers", "json"):
        with pytest.raises(InputError, match="no attribute 'absent'") as caught:
            load("net.py:f")(name)
        assert caught.value.fix == "mend it"


# --- one set of errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["mine.py", "mine.py:", ":f", "mine.py:f g", "mine.py:.f", "mine.py:1"])
def test_what_is_no_reference_is_the_recipes_fault(load: Load, reference: str) -> None:
    with pytest.raises(RecipeError, match=r"data.metric is .* names no callable"):
        load(reference)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("absent.py:f", "data.metric absent.py:f: the file .*absent.py does not exist"),
        ("miné.py:f", "did you mean .*mine.py"),
        ("no_such.module:f", "data.metric no_such.module:f: there is no module no_such; fix: install it"),
        ("json.absent:f", "there is no module json.absent"),
        ("mine.py:g", "data.metric mine.py:g: no callable g; fix: it has Zoo, f"),
        ("mine.py:value", "no callable value"),
        ("mine.py:Zoo.absent", "no callable Zoo.absent"),
        ("torn.py:f", "torn.py fails while it is imported: SyntaxError"),
        ("quits.py:f", r"quits.py fails while it is imported: SystemExit: 0 \(quits.py line 1\)"),
        ("needs.py:f", r"No module named 'not_there' \(needs.py line 2\)"),
    ],
)
def test_code_that_is_not_there_is_named(tmp_path: Path, load: Load, reference: str, said: str) -> None:
    _write(
        tmp_path,
        mine="value = 3\ndef f(): ...\nclass Zoo: ...\ndef _hidden(): ...\n",
        torn="def f(:\n",
        quits="raise SystemExit(0)\n",
        needs="\nimport not_there\n",
    )
    with pytest.raises(InputError, match=said):
        load(reference)


@pytest.mark.parametrize(
    "body", ["raise KeyError('x')", "raise SystemExit('x')", "import layers; layers.f()"]
)
def test_a_call_that_fails_is_named_with_the_users_deepest_line(
    tmp_path: Path, load: Load, body: str
) -> None:
    _write(tmp_path, mine=f"def f():\n    {body}\n", layers="def f():\n\n    raise ValueError('x')\n")
    line = "layers.py line 3" if "layers" in body else "mine.py line 2"
    with pytest.raises(
        InputError, match=rf"data.metric mine.py:f failed: \w+: '?x'? \({line}\); fix: mend it"
    ):
        load("mine.py:f")()


def test_the_line_of_an_installed_module_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "site", an_installed_module="def f():\n    raise ValueError('x')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = load_callable("an_installed_module:f", tmp_path, key="k", fix="mend it")
    with pytest.raises(
        InputError, match=r"k an_installed_module:f failed: .* \(an_installed_module.py line 2\)"
    ):
        found()
    del sys.modules["an_installed_module"]


@pytest.mark.parametrize("error", [GateError("no", fix="none"), MemoryError(), KeyboardInterrupt()])
def test_what_is_not_the_users_fault_passes(tmp_path: Path, load: Load, error: BaseException) -> None:
    _write(tmp_path, mine="def f(error):\n    raise error\n")
    with pytest.raises(type(error)) as caught:
        load("mine.py:f")(error)
    assert caught.value is error


def test_data_that_fails_is_unusable_data(tmp_path: Path) -> None:
    _write(tmp_path, mine="def f():\n    raise ValueError('x')\n")
    found = load_callable("mine.py:f", tmp_path, key="data.x", fix="mend it", failure=CalibrationError)
    with pytest.raises(CalibrationError, match=r"data.x mine.py:f failed: ValueError: x \(mine.py line 2\)"):
        found()


# --- the digest of sources -------------------------------------------------------------------------------


def test_the_digest_follows_every_neighbour_that_an_import_leads_to(tmp_path: Path) -> None:
    _write(
        tmp_path,
        **PACKAGE,
        fit="import numpy, os.path\ndef f():\n    from animals import birds\n    import blocks\n",
        blocks="",
        nobody="",
        torn="def f(:\n",
    )
    seen = {path.stem for path in user_modules.sources_of("fit.py", tmp_path)}
    assert seen == {"fit", "blocks", "__init__", "birds", "fish", "food"}
    assert {path.stem for path in user_modules.sources_of("animals.fish", tmp_path)} >= {"fish", "food"}
    for reference in ("fit.py:f", "animals.birds:Bird"):
        before = source_digest(reference, tmp_path)
        _write(tmp_path, nobody="VALUE = 1\n")
        assert source_digest(reference, tmp_path) == before
        (tmp_path / "animals" / "food.py").write_text(f"FOOD = {reference!r}\n")
        assert source_digest(reference, tmp_path) != before
    assert source_digest("torch.nn:Linear", tmp_path) == "torch.nn"
    assert len(source_digest("torn.py:f", tmp_path)) == 64


def test_every_error_of_user_code_is_one_of_ours(tmp_path: Path, load: Load) -> None:
    _write(tmp_path, mine="def __getattr__(name):\n    raise OSError(name)\n")
    with pytest.raises(EdgeError, match=r"data.metric mine.py:f failed: OSError: f \(mine.py line 2\)"):
        load("mine.py:f")

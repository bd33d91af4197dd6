"""The `[training]` and `[[compress]]` tables, and what a plan refuses of them before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import CalibrationError, EdgeError, InputError, RecipeError, UnsupportedError
from exporter.recipe.compression import QatTable, TrainingTable, training_of
from exporter.recipe.planning import make_plan
from exporter.recipe.recipe import Recipe, read_recipe
from targets.discovery import get_target

BASE = """
[model]
name = "m"
version = "1.0.0"
factory = "package.net:build"
[[model.inputs]]
name = "x"
shape = ["batch", 4]
[data]
calibration = { source = "npz", path = "c.npz" }
TRAINING
[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8"]
"""
DATA = 'training = { source = "npz", path = "t.npz", labels = "label" }'


def _read(tmp_path: Path, steps: str, *, data: str = DATA) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(BASE.replace("TRAINING", data) + steps)
    return read_recipe(path)


def _plan(recipe: Recipe) -> Any:
    return make_plan(recipe, {"raspberry-pi": get_target("raspberry-pi")})


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ('method = "prune"', "exactly one goal"),
        ('method = "prune"\nratio = 0.3\nremove_macs = 0.5', "exactly one goal"),
        ('method = "prune"\nratio = 1.5', "less than 1"),
        ('method = "prune"\nratio = 0.3\nimportanse = "taylor"', "known here: importance"),
        ('method = "prume"\nratio = 0.3', "prune"),
        ('method = "sparsify"\npattern = "4:2"', "N is smaller than M"),
        ('method = "factorize"', "exactly one of max_error"),
        ('method = "student"', "family"),
        ('method = "distill"\nsoft = 0', "at least one of"),
        ('method = "qat"\nscheme = "float16"', "qat trains for"),
        ('method = "prune"\nratio = 0.3\ntrain = { epoch = 3 }', "known here: epochs"),
    ],
)
def test_a_wrong_step_is_refused_by_name(tmp_path: Path, step: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _read(tmp_path, f"[[compress]]\n{step}\n")
    assert says in str(caught.value)
    assert "compress" in str(caught.value)


def test_a_step_overrides_single_keys_of_training() -> None:
    defaults = TrainingTable(epochs=30, learning_rate=0.5)
    step = QatTable(train=TrainingTable(epochs=3))
    table = training_of(step, defaults)
    assert table is not None
    assert (table.epochs, table.learning_rate) == (3, 0.05)
    own = training_of(QatTable(train=TrainingTable(learning_rate=0.2)), defaults)
    assert own is not None
    assert (own.epochs, own.learning_rate) == (30, 0.2)


def test_a_step_may_go_untrained(tmp_path: Path) -> None:
    recipe = _read(tmp_path, '[[compress]]\nmethod = "prune"\nratio = 0.3\ntrain = false\n', data="")
    assert training_of(recipe.compress[0], recipe.training) is None
    _plan(recipe)


@pytest.mark.parametrize(
    ("steps", "data", "error", "says"),
    [
        ('[[compress]]\nmethod = "prune"\nratio = 0.3\n', "", CalibrationError, "train = false"),
        ('[[compress]]\nmethod = "distill"\n', "", CalibrationError, "compress.0 (distill)"),
        (
            '[[compress]]\nmethod = "qat"\n[[compress]]\nmethod = "prune"\nratio = 0.3\n',
            DATA,
            RecipeError,
            "not the last step",
        ),
        (
            '[quantize]\nscheme = "dynamic_wi8_ai8"\n[[compress]]\nmethod = "qat"\n',
            DATA,
            RecipeError,
            "nothing to train for in dynamic_wi8_ai8",
        ),
        (
            '[[compress]]\nmethod = "prune"\nhistory = "gone.json"\n',
            DATA,
            InputError,
            "gone.json",
        ),
        (
            '[training]\naugment = "gone.py:vary"\n[[compress]]\nmethod = "distill"\n',
            DATA,
            InputError,
            "gone.py",
        ),
    ],
)
def test_a_plan_refuses_what_cannot_work(
    tmp_path: Path, steps: str, data: str, error: type[EdgeError], says: str
) -> None:
    with pytest.raises(error) as caught:
        _plan(_read(tmp_path, steps, data=data))
    assert says in str(caught.value)


def test_a_finished_graph_is_not_compressed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    recipe = _read(tmp_path, '[[compress]]\nmethod = "prune"\nratio = 0.3\n')
    model = recipe.model.model_copy(update={"factory": None, "path": Path("m.onnx")})
    with pytest.raises(UnsupportedError, match="factory and weights"):
        _plan(recipe.model_copy(update={"model": model}))


@pytest.mark.parametrize(
    ("module", "step", "needs"),
    [
        (
            "torch_pruning",
            'method = "prune"\nratio = 0.3\ntrain = false',
            "compress.0 (prune) needs torch_pruning",
        ),
        ("accelerate", 'method = "qat"', "compress.0 (qat) needs accelerate"),
    ],
)
def test_a_step_whose_library_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, step: str, needs: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError) as caught:
        _plan(_read(tmp_path, f"[[compress]]\n{step}"))
    assert caught.value.cause.startswith(needs)
    assert caught.value.fix == "run: pip install 'edge-exporter[compress]'"
    _plan(_read(tmp_path, '[[compress]]\nmethod = "factorize"\nmax_error = 0.1\ntrain = false'))

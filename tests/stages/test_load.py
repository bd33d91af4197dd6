"""Loading: what comes out of the door, and the time limit and user code that stand in it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.errors import TimeLimitError
from exporter.model import factory
from exporter.model.source import SourceModel
from exporter.recipe.planning import make_plan
from exporter.recipe.recipe import read_recipe
from exporter.stages.load import load
from targets.discovery import get_target

RECIPE = """
[model]
name = "net"
version = "1.0.0"
factory = "net.py:build"
axes = { time = 6 }
[[model.inputs]]
name = "tokens"
dtype = "int64"
shape = ["batch", "time"]
[[model.inputs]]
name = "scale"
shape = ["batch", 2]
[data]
calibration = { source = "npz", path = "c.npz" }
[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8"]
"""
NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
    def forward(self, tokens, scale):
        return self.drop(tokens.float().mean(1, keepdim=True) * scale)
def build():
    return Net()
"""


def _load(folder: Path) -> SourceModel:
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "net.py").write_text(NET)
    recipe = read_recipe(folder / "recipe.toml")
    return load(make_plan(recipe, {"raspberry-pi": get_target("raspberry-pi")}), log=folder / "log")


def test_examples_have_the_recipes_shapes_and_kinds(tmp_path: Path) -> None:
    source = _load(tmp_path)
    assert {name: (array.dtype.name, array.shape) for name, array in source.example.items()} == {
        "tokens": ("int64", (1, 6)),
        "scale": ("float32", (1, 2)),
    }
    assert source.axes == {"batch": 1, "time": 6}


def test_the_module_comes_in_eval_mode_and_answers_twice_the_same(tmp_path: Path) -> None:
    source = _load(tmp_path)
    first, second = source.forward(source.example), source.forward(source.example)
    assert np.array_equal(first[0], second[0])


def test_a_factory_and_its_forward_import_neighbours_when_they_run(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "layers.py").write_text("def scaled(x, scale):\n    return x * scale\n")
    body = NET.replace("return self.drop(", "import layers\n        return layers.scaled(")
    body = body.replace(" * scale)", ", scale)").replace(
        "return Net()", "import layers, shared\n    return shared.seen(Net())"
    )
    (tmp_path / "net" / "net.py").write_text(body)
    (tmp_path / "shared.py").write_text("def seen(net):\n    net.seen = True\n    return net\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("net.py:build", "net/net.py:build"))
    plan = make_plan(read_recipe(recipe), {"raspberry-pi": get_target("raspberry-pi")})
    source = load(plan, log=tmp_path / "log")
    assert source.module is not None
    assert source.module.seen
    assert source.forward(source.example)[0].shape == (1, 2)
    torch.export.export(source.module, tuple(map(torch.from_numpy, source.example.values())))


def test_loading_leaves_no_trace_in_the_interpreter(tmp_path: Path) -> None:
    path = list(sys.path)
    _load(tmp_path)
    assert sys.path == path
    assert not any("SIGALRM" in str(item) for item in [factory.signal.getsignal(factory.signal.SIGALRM)])
    assert factory.signal.getitimer(factory.signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_time_limit_interrupts_even_code_that_catches_everything() -> None:
    started = time.monotonic()
    with (
        pytest.raises(TimeLimitError, match=r"the thing did not return within 0.1 s"),
        factory._time_limit(0.1, "the thing"),
    ):
        while time.monotonic() - started < 30:
            try:
                time.sleep(30)
            except Exception:  # noqa: BLE001 - the user's bad habit that this test is about
                continue
    assert time.monotonic() - started < 10

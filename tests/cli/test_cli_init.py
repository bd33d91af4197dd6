"""Drafts that `init` writes: they read back, say what is known, and name what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_ground import make_tiny
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporter.jobs.init import FILL_IN, draft_recipe
from exporter.recipe.planning import make_plan
from exporter.recipe.recipe import read_recipe
from targets.discovery import all_targets

Call = Callable[..., Result]


def test_a_draft_of_an_onnx_model_reads_back_as_what_the_file_says(tiny_onnx: Path, call: Call) -> None:
    result = call("init", tiny_onnx, "-o", "recipe.toml")
    assert (result.exit_code, result.stderr) == (0, "")
    recipe = read_recipe(Path("recipe.toml"))
    assert (recipe.model.name, str(recipe.model.path)) == ("tiny", "tiny.onnx")
    assert [table.model_dump() for table in recipe.model.inputs] == [
        {"name": "image", "dtype": "float32", "shape": ("batch", 1, 8, 8)}
    ]
    assert list(recipe.targets) == list(all_targets())
    assert recipe.data.calibration is None, "calibration data must never be made up"
    assert FILL_IN in Path("recipe.toml").read_text()
    assert "calibration data" in result.stdout


def test_a_draft_can_be_built_once_its_author_has_filled_it_in(tiny_onnx: Path, call: Call) -> None:
    call("init", tiny_onnx)
    path = Path("recipe.toml")
    path.write_text(path.read_text().replace("# calibration = { source", "calibration = { source"))
    plan = make_plan(read_recipe(path), all_targets())
    assert {str(planned.spec) for planned in plan.artifacts} >= {"onnx:static_wi8_ai8", "onnx:float32@fixed"}


def test_a_recipe_that_is_there_is_kept_unless_forced(tiny_onnx: Path, call: Call) -> None:
    Path("recipe.toml").write_text("mine")
    refused = call("init", tiny_onnx)
    assert (refused.exit_code, Path("recipe.toml").read_text()) == (2, "mine")
    assert "recipe.toml is there already; fix: choose another name with -o, or pass --force" in refused.stderr
    assert call("init", tiny_onnx, "--force").exit_code == 0
    assert read_recipe(Path("recipe.toml")).model.name == "tiny"


def test_json_says_where_the_draft_is_and_what_is_open(tiny_onnx: Path, call: Call) -> None:
    document = json.loads(call("init", tiny_onnx, "--json", "-o", "a.toml").stdout)
    assert document["recipe"] == "a.toml"
    assert len(document["open_points"]) == 1


def test_paths_are_written_as_the_recipes_folder_sees_them(tiny_onnx: Path, call: Call) -> None:
    Path("deep/down").mkdir(parents=True)
    assert call("init", tiny_onnx.name, "-o", "deep/down/recipe.toml").exit_code == 0
    recipe = read_recipe(Path("deep/down/recipe.toml"))
    assert str(recipe.model.path) == "../../tiny.onnx"
    assert recipe.model.path is not None and recipe.resolve(recipe.model.path).samefile(tiny_onnx)


def test_axes_that_need_a_size_are_placeholders_and_named_as_open(workplace: Path, call: Call) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Cast", ["tokens"], ["out"], to=TensorProto.FLOAT)],
        "g",
        [value("tokens", TensorProto.INT64, ["batch", "2*seq + 1"])],
        [value("out", TensorProto.FLOAT, ["batch", "2*seq + 1"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, "text.onnx")
    result = call("init", "text.onnx")
    recipe = read_recipe(Path("recipe.toml"))
    assert recipe.model.inputs[0].shape == ("batch", "axis_2_seq_1")
    assert recipe.model.axis_sizes([recipe.model.inputs[0].spec()]) == {"batch": 1, "axis_2_seq_1": 128}
    assert "axis_2_seq_1 = 128 is a placeholder" in " ".join(result.stdout.split())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    stem=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    axis=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
)
def test_a_draft_reads_back_whatever_the_names(workplace: Path, stem: str, axis: str) -> None:
    path = workplace / f"x{stem}.onnx"
    onnx.save(make_tiny(axis=axis), path)
    draft = draft_recipe(str(path), workplace, ["android"], log=workplace / "log")
    target = workplace / "recipe.toml"
    target.write_text(draft.text, encoding="utf-8")
    recipe = read_recipe(target)
    assert recipe.model.path is not None and recipe.resolve(recipe.model.path) == path
    assert recipe.model.inputs[0].shape[1:] == (1, 8, 8)


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor, mask, scale: float = 1.0):
        return self.layer(tokens) * mask * scale

def build():
    print("noise")
    return Net()

def broken():
    raise ValueError("no such file\\nsecond line")

def leaves():
    raise SystemExit(0)
"""


def test_a_factory_gives_the_names_of_its_inputs_and_placeholders_for_the_rest(call: Call) -> None:
    Path("net.py").write_text(NET)
    result = call("init", "net.py:build", "--json")
    assert result.exit_code == 0, result.stderr
    open_points = " ".join(json.loads(result.stdout)["open_points"])
    assert "dtype and shape of tokens, mask are placeholders" in open_points
    text = Path("recipe.toml").read_text()
    recipe = read_recipe(Path("recipe.toml"))
    assert (recipe.model.name, recipe.model.factory) == ("net", "net.py:build")
    assert [table.name for table in recipe.model.inputs] == ["tokens", "mask"]
    assert "# returns Net with 10 parameters" in text
    assert text.count(FILL_IN) >= 3
    assert np.dtype(recipe.model.inputs[0].dtype) == np.float32


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("net.py:broken", 10, "ValueError: no such file"),
        ("net.py:leaves", 10, "SystemExit"),
        ("net.py:absent", 10, "no callable absent"),
        ("nte.py:build", 10, "did you mean net.py?"),
        ("net.py", 12, "fix: write net.py:build, where build() returns the torch module"),
        ("model.pt2", 12, "does not say what its inputs are"),
        ("absent.onnx", 10, "absent.onnx does not exist"),
    ],
)
def test_what_cannot_be_drafted_is_one_line_and_leaves_no_recipe(
    model: str, status: int, says: str, call: Call
) -> None:
    Path("net.py").write_text(NET)
    result = call("init", model)
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert says in result.stderr
    assert not Path("recipe.toml").exists()

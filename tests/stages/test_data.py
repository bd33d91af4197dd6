"""What a build says of the data it is given, before it spends time on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.errors import CalibrationError, EdgeError, InputError, RecipeError
from exporter.model.source import SourceModel
from exporter.recipe.planning import Plan, make_plan
from exporter.recipe.recipe import read_recipe
from exporter.stages.data import BuildData, read_data, require_labels_fit
from exporter.stages.load import load
from targets.discovery import get_target

RECIPE = """
[model]
name = "net"
version = "1.0.0"
factory = "net.py:build"
{model}
[[model.inputs]]
name = "x"
shape = ["batch", 4]
[data]
calibration = {{ source = "npz", path = "calibration.npz" }}
evaluation = {{ source = "npz", path = "evaluation.npz", labels = "label" }}
{data}
[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8"]
"""


def prepare(
    folder: Path, *, scale: float = 1.0, outlier: float = 0.0, model: str = "", data: str = ""
) -> tuple[Plan, SourceModel]:
    (folder / "net.py").write_text("import torch\ndef build(): return torch.nn.Linear(4, 3)\n")
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, data=data))
    rng = np.random.default_rng(0)
    calibration = rng.normal(0, 1, (20, 4)).astype(np.float32)
    calibration[7, 2] += outlier
    np.savez(folder / "calibration.npz", x=calibration * np.float32(scale))
    np.savez(
        folder / "evaluation.npz",
        x=rng.normal(0, 1, (12, 4)).astype(np.float32),
        label=rng.integers(0, 3, 12),
    )
    plan = make_plan(read_recipe(folder / "recipe.toml"), {"raspberry-pi": get_target("raspberry-pi")})
    torch.manual_seed(0)
    return plan, load(plan, log=folder / "log")


def read(folder: Path, **changes: float | str) -> BuildData:
    return read_data(*prepare(folder, **changes))  # type: ignore[arg-type]


def test_calibration_and_evaluation_that_were_not_scaled_alike_are_named_with_both_peaks(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        CalibrationError, match=r"input 'x' typically reaches .* in calibration and"
    ) as caught:
        read(tmp_path, scale=255.0)
    assert "0..255 against 0..1" in caught.value.fix


def test_one_outlier_is_no_other_scale(tmp_path: Path) -> None:
    data = read(tmp_path, outlier=1e6)
    assert any("sample 7 of input 'x'" in finding for finding in data.findings)


def test_a_metric_of_the_users_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "scoring").mkdir()
    (tmp_path / "scoring" / "metric.py").write_text(
        "from hits import hits\nimport net\n"
        "def score(outputs, labels):\n    from share import share\n    return share(hits(outputs, labels))\n"
    )
    (tmp_path / "scoring" / "hits.py").write_text("def hits(outputs, labels):\n    return [True, False]\n")
    (tmp_path / "share.py").write_text("def share(hits):\n    return sum(hits) / len(hits)\n")
    data = read(tmp_path, data='metric = "scoring/metric.py:score"')
    assert data.metric is not None
    assert data.metric([], np.zeros(2)) == 0.5


@pytest.mark.parametrize(
    ("metric", "kind", "said"),
    [
        ("top2", RecipeError, "data.metric: no metric is called 'top2'"),
        ("absent.py:f", InputError, "data.metric absent.py:f: the file .* does not exist"),
        ("net.py:f", InputError, "data.metric net.py:f: no callable f; fix: it has build"),
    ],
)
def test_a_metric_that_is_not_there_is_named(
    tmp_path: Path, metric: str, kind: type[EdgeError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        read(tmp_path, data=f'metric = "{metric}"')


def test_a_source_of_the_users_is_named_by_its_key(tmp_path: Path) -> None:
    plan, source = prepare(tmp_path)
    own = {"source": "python", "callable": "net.py:f"}
    data = plan.recipe.data.model_copy(update={"evaluation": own})
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"data": data}))
    with pytest.raises(InputError, match=r"data.evaluation.callable net.py:f: no callable f"):
        read_data(plan, source)


def test_names_of_classes_come_from_the_recipe(tmp_path: Path) -> None:
    assert read(tmp_path, model='labels = ["a", "b", "c"]').class_names == ("a", "b", "c")


def test_names_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(RecipeError, match="2 names and the model answers with 3 classes"):
        require_labels_fit(("a", "b"), 3)
    require_labels_fit((), 3)
    require_labels_fit(("a", "b"), "classes")

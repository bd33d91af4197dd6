"""The real evaluation: three variants of a small trained network, compressed, exported, run and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import exporter.demo
from exporter.artifacts import ArtifactSpec
from exporter.errors import CalibrationError, InputError
from exporter.progress import Silence
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.recipe.tune import TuneTable
from exporter.search.evaluation import PipelineEvaluation, artifact_of, plan_of, user_measure
from exporter.search.trial import Evaluate
from exporter.search.tuning import TuneRequest, read_question, tune

DEMO = Path(exporter.demo.__file__).parent
TEXT = f"""\
[model]
name    = "digits"
version = "1.0.0"
factory = "{DEMO}/models.py:build_cnn"
weights = "{DEMO}/weights/digits_cnn.safetensors"
[[model.inputs]]
name  = "image"
shape = ["batch", 1, 32, 32]
[data]
calibration = {{ source = "npz", path = "{DEMO}/data/calibration.npz", samples = 100 }}
evaluation  = {{ source = "npz", path = "{DEMO}/data/evaluation.npz", labels = "label" }}
training    = {{ source = "npz", path = "{DEMO}/data/training.npz", labels = "label", samples = 128 }}
validation  = {{ source = "npz", path = "{DEMO}/data/validation.npz", labels = "label", samples = 60 }}
metric      = "top1"
[training]
epochs = 1
[[compress]]
method      = "prune"
remove_macs = 0.2   # a fifth
[quantize]
scheme = "dynamic_wi8_ai8"
[targets.raspberry-pi]
artifacts = ["onnx:dynamic_wi8_ai8"]
[tune]
objectives = ["metric", "size", "latency", "device:bytes max"]
measure = "weigh.py:weigh"
[tune.space]
"compress.0.remove_macs" = {{ low = 0.2, high = 0.8, step = 0.2 }}
"quantize.scheme" = ["dynamic_wi8_ai8", "float32"]
[tune.constraints]
max_mmacs = 1.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "weigh.py").write_text("def weigh(path):\n    return {'bytes': path.stat().st_size}\n")
    (tmp_path / "recipe.toml").write_text(TEXT)
    return tmp_path / "recipe.toml"


@pytest.mark.nightly
def test_three_trials_of_a_real_network(recipe: Path, tmp_path: Path) -> None:
    question = read_question(recipe)

    def make(scratch: Path) -> tuple[Evaluate, str | None]:
        evaluation = PipelineEvaluation(
            question.recipe, question.table, scratch=scratch, progress=Silence(), log=tmp_path / "log"
        )
        return evaluation, evaluation.metric_name

    out = tmp_path / "out"
    tuned = tune(question, TuneRequest("s", None, out, 3), make, Silence())
    document = json.loads((out / "study.json").read_text())
    original = document["original"]
    assert original["metric"] > 0.95
    assert original["macs"] > 1_500_000
    assert [trial["outcome"] for trial in document["trials"]].count("complete") >= 1
    for trial in document["trials"]:
        assert trial["outcome"] in {"complete", "pruned"}, trial["reason"]
        seen = trial["figures"] or trial["screened"]
        share = trial["values"]["compress.0.remove_macs"]
        assert seen["macs"] <= (1 - share) * original["macs"] * 1.02
        assert (trial["outcome"] == "pruned") is (seen["macs"] > 1_500_000)
        if trial["outcome"] == "complete":
            assert trial["figures"]["device"] == {"bytes": trial["figures"]["size_bytes"]}
            assert trial["figures"]["size_bytes"] == trial["screened"]["size_bytes"]
            assert 0 < trial["figures"]["metric"] <= 1
            assert len(trial["validations"]) == 2
            assert trial["figures"]["latency_ms"] > 0
    assert (
        read_recipe(tuned.recipe.path).compress[0].remove_macs
        == (  # type: ignore[union-attr]
            document["chosen"]["values"]["compress.0.remove_macs"]
        )
    )
    assert "# a fifth" in tuned.recipe.path.read_text()


def table(**keys: object) -> TuneTable:
    return TuneTable.model_validate({"space": {"quantize.rule": ["mse"]}, **keys})


@pytest.mark.parametrize(
    ("artifact", "spec"),
    [
        ("onnx", "onnx:dynamic_wi8_ai8"),
        ("onnx@fixed", "onnx:dynamic_wi8_ai8@fixed"),
        ("tflite", "tflite:dynamic_wi8_ai8"),
        ("onnx:float32", "onnx:float32"),
        ("ort:static_wi8_ai8@fixed", "ort:static_wi8_ai8@fixed"),
    ],
)
def test_the_artifact_takes_the_recipes_scheme_unless_it_has_its_own(
    recipe: Path, artifact: str, spec: str
) -> None:
    assert artifact_of(read_recipe(recipe), table(artifact=artifact)) == ArtifactSpec.parse(spec)


def test_the_users_measure_imports_its_neighbours_when_it_runs(tmp_path: Path) -> None:
    (tmp_path / "weigh.py").write_text(
        "def weigh(path):\n    from scales import put\n    yield from put(path)\n"
    )
    (tmp_path / "scales.py").write_text("def put(path):\n    yield 'grams', path.name.count('g')\n")
    objectives = ["metric", "device:grams min"]
    measure = user_measure(table(measure="weigh.py:weigh", objectives=objectives), tmp_path)
    assert measure is not None
    assert measure(Path("egg")) == {"grams": 2.0}
    with pytest.raises(InputError, match=r"tune.measure weigh.py:weigh failed: .* \(scales.py line 2\)"):
        measure(3)  # type: ignore[arg-type]


def test_what_judges_in_the_end_is_not_what_chooses(recipe: Path) -> None:
    whole = read_recipe(recipe)
    assert plan_of(whole, table()).recipe.data.evaluation == whole.data.validation
    unsplit = whole.model_copy(update={"data": whole.data.model_copy(update={"validation": None})})
    assert plan_of(unsplit, table()).recipe.data.evaluation == whole.data.evaluation


def test_a_variant_that_no_build_could_make_is_refused_by_its_plan(recipe: Path) -> None:
    bare = Recipe.model_validate({**read_recipe(recipe).model_dump(exclude={"tune"}), "data": {}})
    with pytest.raises(
        CalibrationError, match=r"compress.0 .prune. trains, and the recipe gives no training data"
    ):
        plan_of(bare.model_copy(update={"folder": recipe.parent}), table())

"""The order of steps: figures before and after, what is saved, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import CompressionStep, ModelFigures, TensorSpec
from exporter.compress.base import Workshop
from exporter.compress.saved import serialized_weights, weights_digest
from exporter.compress.steps import Compressed, compress, rebuild
from exporter.errors import UnsupportedError
from exporter.judging.metrics import METRICS
from exporter.judging.scoring import Judging
from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.recipe.recipe import Recipe
from exporter.stages.measure import TimedMeter, measure
from exporter.training.data import TrainingData

SAMPLES = 64


class Net(nn.Module):
    """Two hidden layers over eight features; wide enough that halves of it can go."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(x))
        return scores


class _Heard(Silence):
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def _source() -> SourceModel:
    torch.manual_seed(0)
    spec = TensorSpec("x", "float32", ("batch", 8))
    example = {"x": np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)}
    return SourceModel("net", Net().eval(), None, (spec,), ("scores",), {"batch": 1}, example)


def _data() -> TrainingData:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(SAMPLES, 8)).astype(np.float32)
    labels = np.argmax(x[:, :4], axis=1)
    spec = TensorSpec("x", "float32", ("batch", 8))
    half = SAMPLES // 2
    return TrainingData(
        (spec,),
        {"x": x[:half]},
        labels[:half],
        {"x": x[half:]},
        labels[half:],
        "top1",
        METRICS["top1"],
        "data",
    )


def _recipe(*steps: dict[str, Any]) -> Recipe:
    model = {
        "name": "net",
        "version": "1.0.0",
        "factory": "net.py:build",
        "inputs": [{"name": "x", "shape": ["batch", 8]}],
    }
    training = {"epochs": 2, "batch_size": 16}
    return Recipe.model_validate({"model": model, "compress": list(steps), "training": training})


def _workshop(folder: Path, recipe: Recipe, **changes: Any) -> Workshop:
    data = _data()
    samples = [{"x": data.validation["x"][[row]]} for row in range(SAMPLES // 2)]
    judging = Judging(samples, data.validation_labels, "top1", METRICS["top1"])
    workshop = Workshop(
        original=_source(),
        recipe=recipe,
        training=data,
        calibration=None,
        folder=folder,
        progress=_Heard(),
        meter=TimedMeter(judging),
    )
    return dataclasses.replace(workshop, **changes)


FACTORIZE = {"method": "factorize", "remove_parameters": 0.3}
SPARSIFY = {"method": "sparsify", "sparsity": 0.5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compressed]:
    folder = tmp_path_factory.mktemp("steps") / "kept"
    return folder, compress(_workshop(folder, _recipe(FACTORIZE, SPARSIFY)))


def test_each_step_says_what_was_before_it_and_after_it(finished: tuple[Path, Compressed]) -> None:
    _, compressed = finished
    first, second = compressed.steps
    assert (first.method, second.method) == ("factorize", "sparsify")
    assert first.before == first.original == compressed.original
    assert second.before == first.after
    assert second.original == compressed.original
    assert first.after.parameters <= 0.7 * first.before.parameters
    assert second.after.zero_share > 0.4
    assert second.after.download_bytes < first.after.download_bytes
    assert all(step.trainings and step.seconds > 0 and step.peak_rss_mb > 50 for step in compressed.steps)
    assert compressed.original.metric == "top1"


def test_the_given_model_is_not_changed(tmp_path: Path) -> None:
    source = _source()
    assert source.module is not None
    before = weights_digest(source.module)
    compress(_workshop(tmp_path / "kept", _recipe(SPARSIFY), original=source))
    assert weights_digest(source.module) == before


def test_the_structure_can_be_rebuilt_from_the_edits(finished: tuple[Path, Compressed]) -> None:
    _, compressed = finished
    module = rebuild(_source(), json.loads(json.dumps(compressed.edits)))
    assert compressed.source.module is not None
    from safetensors.torch import load

    module.load_state_dict(load(serialized_weights(compressed.source.module)))
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(module(x), compressed.source.module(x))


def test_finished_steps_are_not_done_again_with_resume(
    finished: tuple[Path, Compressed], tmp_path: Path
) -> None:
    import shutil

    folder, compressed = finished
    kept = shutil.copytree(folder, tmp_path / "kept")
    heard = _Heard()
    again = compress(_workshop(kept, _recipe(FACTORIZE, SPARSIFY), resume=True, progress=heard))
    assert [line.partition(":")[0] for line in heard.said] == ["factorize", "sparsify"]
    assert again.source.module is not None
    assert compressed.source.module is not None
    assert weights_digest(again.source.module) == weights_digest(compressed.source.module)
    assert [_untimed(step) for step in again.steps] == [_untimed(step) for step in compressed.steps]


def _untimed(step: CompressionStep) -> CompressionStep:
    """Return `step` without the latencies, which are measured anew whenever steps are put together."""
    figures = {name: getattr(step, name) for name in ("original", "before", "after")}
    return dataclasses.replace(
        step, **{name: dataclasses.replace(value, p50_ms=None) for name, value in figures.items()}
    )


@pytest.mark.parametrize("damage", ["flipped weights", "another recipe", "torn record"])
def test_a_step_that_is_not_this_one_is_done_again(
    finished: tuple[Path, Compressed], tmp_path: Path, damage: str
) -> None:
    import shutil

    folder, compressed = finished
    kept = shutil.copytree(folder, tmp_path / "kept")
    step = FACTORIZE
    if damage == "flipped weights":
        path = kept / "01-factorize" / "weights.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "torn record":
        path = kept / "01-factorize" / "done.json"
        path.write_bytes(path.read_bytes()[:100])
    else:
        step = {"method": "factorize", "remove_parameters": 0.2}
    heard = _Heard()
    again = compress(_workshop(kept, _recipe(step), resume=True, progress=heard))
    assert not [line for line in heard.said if "already done" in line]
    if damage != "another recipe":
        assert again.source.module is not None
        figures = [dataclasses.replace(item.steps[0].after, p50_ms=None) for item in (again, compressed)]
        assert figures[0] == figures[1]


def test_without_resume_what_was_kept_is_dropped(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "09-old").mkdir(parents=True)
    compress(_workshop(kept, _recipe(SPARSIFY)))
    assert not (kept / "09-old").exists()


def test_a_graph_without_a_module_is_refused(tmp_path: Path) -> None:
    source = dataclasses.replace(_source(), module=None, onnx=tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="factory with weights"):
        compress(_workshop(tmp_path / "kept", _recipe(SPARSIFY), original=source))


def test_figures_are_those_of_the_exported_file(tmp_path: Path) -> None:
    figures: ModelFigures = measure(_source(), tmp_path)
    layers: Sequence[tuple[int, int]] = ((8, 64), (64, 64), (64, 4))
    assert figures.macs == sum(depth * width for depth, width in layers)
    assert figures.parameters == figures.macs + 64 + 64 + 4
    assert figures.size_bytes == (tmp_path / "measured.onnx").stat().st_size
    assert 0 < figures.download_bytes < figures.size_bytes * 1.01
    assert figures.p50_ms is not None
    assert (figures.metric, figures.score) == (None, None)

"""The benchmark models: right sizes, repeatable, and convertible where this project converts them."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "zoo_models.py"
MILLION_PARAMETERS = {
    "resnet50": 25.6,
    "mobilenet-v2": 3.5,
    "efficientnet-b0": 5.3,
    "vit-b16": 86.6,
    "bert-base": 109.5,
    "distilbert": 67.0,
    "gpt2": 124.4,
    "whisper-tiny-encoder": 8.2,
}
OUTPUT_SHAPES = {
    "mobilenet-v2": (1, 1000),
    "efficientnet-b0": (1, 1000),
    "whisper-tiny-encoder": (1, 1500, 384),
}
SMALL = sorted(OUTPUT_SHAPES)


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' imports are not ours to keep clean
        spec.loader.exec_module(module)
    return module


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_model_of_the_zoo_is_checked_here(zoo: ModuleType) -> None:
    assert set(zoo.MODELS) == set(MILLION_PARAMETERS)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_runs_on_its_own_samples(zoo: ModuleType, name: str) -> None:
    model = zoo.MODELS[name]()
    assert not model.module.training
    assert parameter_count(model.module) / 1e6 == pytest.approx(MILLION_PARAMETERS[name], abs=0.05)
    samples = list(model.samples(2))
    for sample in samples:
        for spec in model.inputs:
            fixed = spec.fixed(model.axes)
            assert sample[spec.name].shape == fixed.shape
            assert sample[spec.name].dtype == np.dtype(spec.dtype)
    with torch.no_grad():
        first, second = (
            model.module(*(torch.from_numpy(array) for array in sample.values())) for sample in samples
        )
    assert first.shape == OUTPUT_SHAPES[name]
    assert torch.isfinite(first).all()
    assert first.std() > 1e-3
    assert (first - second).abs().max() > 1e-4, "the answer does not depend on the input"


def test_builds_repeat_and_leave_the_random_state_alone(zoo: ModuleType) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = zoo.build_mobilenet_v2(), zoo.build_mobilenet_v2()
    assert torch.equal(torch.rand(3), expected)
    states = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    for (name, one), (_, other) in states:
        assert torch.equal(one, other), name


def test_batch_normalisation_is_not_an_identity(zoo: ModuleType) -> None:
    norms = [m for m in zoo.build_mobilenet_v2().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 52
    for norm in norms:
        assert norm.running_var is not None
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 1e-3
        assert (norm.running_var - 1).abs().max() > 1e-3


def test_samples_repeat_for_a_seed_and_differ_between_seeds(zoo: ModuleType) -> None:
    draw = zoo._tokens(30522, 128, masked=True)
    one, same, other = (draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["input_ids"], same["input_ids"])
    assert not np.array_equal(one["input_ids"], other["input_ids"])
    assert one["input_ids"].min() >= 0
    assert one["input_ids"].max() < 30522


@pytest.mark.nightly
@pytest.mark.parametrize("name", MILLION_PARAMETERS)
def test_every_model_exports_with_named_axes(zoo: ModuleType, name: str, tmp_path: Path) -> None:
    model = zoo.MODELS[name]()
    assert parameter_count(model.module) / 1e6 == pytest.approx(MILLION_PARAMETERS[name], abs=0.05)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        zoo.export_onnx(model, path)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [tuple(item.shape) for item in session.get_inputs()] == [spec.shape for spec in model.inputs]
    for batch in (1, 2):
        assert zoo._worst_difference(model, session, batch) < 5e-5

"""Pruning of trained and of full-size networks, from the demo's data to the exported file."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
import torch
from prune_ground import workshop_of
from safetensors.torch import load_file
from test_prune import module_of, table_of
from torch import nn

import exporter.demo
from exporter.artifacts import TensorSpec
from exporter.compress.prune.method import prune, replay
from exporter.model.graph import node_macs
from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.recipe.compression import PruneTable, TrainingTable
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.stages.measure import export
from exporter.training.data import TrainingData
from exporter.training.job import TrainingJob
from exporter.training.loop import train

DEMO = Path(exporter.demo.__file__).parent
IMAGE = (TensorSpec("image", "float32", ("batch", 1, 32, 32)),)


def digits(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DEMO / "data" / f"{name}.npz") as arrays:
        return arrays["image"], arrays["label"]


def trained(kind: str) -> SourceModel:
    from exporter.demo import models

    module: nn.Module = {"cnn": models.build_cnn, "vit": models.build_vit}[kind]()
    module.load_state_dict(load_file(str(DEMO / "weights" / f"digits_{kind}.safetensors")))
    return SourceModel(
        kind, module.eval(), None, IMAGE, (), {"batch": 1}, {"image": digits("validation")[0][:1]}
    )


def accuracy(module: nn.Module) -> float:
    images, labels = digits("evaluation")
    with torch.no_grad():
        return float((module(torch.from_numpy(images)).argmax(1).numpy() == labels).mean() * 100)


@pytest.mark.parametrize(
    ("kind", "importance", "untrained"),
    [pytest.param("cnn", "magnitude", (0, 50), marks=pytest.mark.nightly), ("vit", "taylor", (97, 100))],
)
def test_half_of_the_macs_go_and_training_brings_the_accuracy_back(
    kind: str, importance: str, untrained: tuple[float, float], tmp_path: Path
) -> None:
    source = trained(kind)
    (images, labels), (held, held_labels) = digits("training"), digits("validation")
    data = TrainingData(IMAGE, {"image": images}, labels, {"image": held}, held_labels, None, None, "digits")

    def recover(module: nn.Module, table: TrainingTable, label: str) -> object:
        return train(TrainingJob(module, data, table, source.module), tmp_path / label, Silence())

    table = PruneTable.model_validate(
        {"remove_macs": 0.5, "importance": importance, "train": {"epochs": 5, "learning_rate": 2e-3}}
    )
    result = prune(source, table, workshop_of(source, tmp_path, training=data, train=recover))
    assert result.details is not None
    assert result.details["macs"][1] <= 0.5 * result.details["macs"][0]
    assert result.changed is not None
    # five epochs, to be quick; the bench trains longer and loses nothing
    assert accuracy(module_of(result.source)) > 97
    assert untrained[0] <= accuracy(module_of(result.changed)) <= untrained[1]
    path = export(result.source, tmp_path / "pruned.onnx")
    assert result.details["macs"][1] == pytest.approx(
        sum(node_macs(ir.load(path), source.axes).values()), rel=0.02
    )
    sample = {"image": digits("evaluation")[0][:1]}
    (exported,) = OnnxModel(path).run(sample).values()
    assert np.allclose(exported, result.source.forward(sample)[0], atol=1e-4)


# --- full size, random weights -----------------------------------------------------------------------------


@functools.cache
def zoo() -> ModuleType:
    pytest.importorskip("transformers")
    path = Path(__file__).parents[2] / "scripts" / "zoo_models.py"
    specification = importlib.util.spec_from_file_location("zoo_models_for_pruning", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["resnet50", "bert-base"])
def test_full_size_networks_are_halved_and_exported(name: str, tmp_path: Path) -> None:
    model = zoo().MODELS[name]()
    axes = {**model.axes, "batch": 1}
    source = SourceModel(name, model.module, None, model.inputs, (), axes, next(model.samples(1)))
    result = prune(source, table_of(remove_macs=0.5), workshop_of(source, tmp_path))
    assert result.details is not None
    was, now = result.details["macs"]
    assert 0.48 * was < now <= 0.5 * was
    assert all(kept % 8 == 0 for _, kept in result.details["layers"].values())
    again = replay(model.module, result.edit, source)
    wanted = result.source.forward(source.example)
    assert np.array_equal(
        again(*(torch.from_numpy(source.example[spec.name]) for spec in source.inputs)).detach(), wanted[0]
    )
    path = export(result.source, tmp_path / "pruned.onnx")
    assert sum(node_macs(ir.load(path), axes).values()) == pytest.approx(now, rel=0.02)
    (output,) = OnnxModel(path).run(source.example).values()
    assert np.abs(output - wanted[0]).max() < 1e-3 * np.abs(wanted[0]).max()

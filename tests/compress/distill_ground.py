"""What tests of distillation stand on: teachers and students, and stripes that they tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compress_ground import StubMeter
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.compress.base import Workshop
from exporter.judging.metrics import top1
from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.recipe.compression import TrainingTable
from exporter.recipe.recipe import Recipe
from exporter.training.data import TrainingData

CLASSES = 3
EPOCHS = TrainingTable(epochs=6, batch_size=16, learning_rate=0.02)
INPUTS = (TensorSpec("image", "float32", ("batch", 1, 8, 8)),)


class Cnn(nn.Module):
    """Two stages of convolutions and a classifier."""

    def __init__(self, width: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.stem(image)).mean((2, 3)))


class Embedder(nn.Module):
    """Pictures to unit vectors: no classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.body(image), dim=1)


class TwoAnswers(Cnn):
    def forward(self, image: torch.Tensor) -> Any:
        logits = super().forward(image)
        return logits, logits.sum(1)


def make_data(count: int = 240, *, labelled: bool = True, seed: int = 0) -> TrainingData:
    """Return pictures of vertical, horizontal and diagonal stripes with noise, and which they are."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    row, column = np.mgrid[0:8, 0:8]
    stripes = np.stack([row % 2, column % 2, (row + column) % 2]).astype(np.float32)
    images = stripes[labels][:, None] + generator.normal(0, 0.4, (count, 1, 8, 8)).astype(np.float32)
    split = count * 3 // 4
    metric = ("top1", top1) if labelled else (None, None)
    return TrainingData(
        INPUTS,
        {"image": images[:split]},
        labels[:split].astype(np.int64) if labelled else None,
        {"image": images[split:]},
        labels[split:].astype(np.int64) if labelled else None,
        *metric,
        f"stripes-{count}-{seed}",
    )


def make_source(module: nn.Module) -> SourceModel:
    example = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    return SourceModel("net", module.eval(), None, INPUTS, (), {"batch": 1}, example)


def seeded(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return factory()


def make_workshop(folder: Path, original: nn.Module, data: TrainingData) -> Workshop:
    """Return a workshop that measures nothing."""
    image = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
    model = {"name": "net", "version": "1.0.0", "factory": "x.py:f", "inputs": [image]}
    training = EPOCHS.model_dump(exclude_unset=True)
    recipe = Recipe.model_validate({"model": model, "training": training}).model_copy(
        update={"folder": folder}
    )
    return Workshop(
        original=make_source(original),
        recipe=recipe,
        training=data,
        calibration=None,
        folder=folder,
        progress=Silence(),
        meter=StubMeter(),
    )

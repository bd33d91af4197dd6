"""What tests of single methods stand on: a workshop with a small training loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.artifacts import ModelFigures, TensorSpec
from exporter.compress.base import Workshop
from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.recipe.recipe import Recipe
from exporter.training.data import TrainingData
from exporter.training.record import TrainingRecord

RECIPE = Recipe.model_validate({"model": {"name": "net", "version": "1.0.0", "path": "net.onnx"}})


class ListedSamples:
    """A dataset of the samples it is given."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Any:
        return iter(self._samples)

    fingerprint = "listed"
    labels = None
    source = "a list"


class ConvNet(nn.Module):
    """Conv, BatchNorm, ReLU, mean over the picture, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 3]."""
        logits: torch.Tensor = self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))
        return logits


def make_source(module: nn.Module, shape: tuple[int, ...]) -> SourceModel:
    """Return `module` with one float32 input `x` of `[batch, *shape]`."""
    example = np.random.default_rng(0).uniform(0, 1, (1, *shape)).astype(np.float32)
    inputs = (TensorSpec("x", "float32", ("batch", *shape)),)
    return SourceModel("net", module.eval(), None, inputs, (), {"batch": 1}, {"x": example})


def conv_source() -> SourceModel:
    """Return a `ConvNet` on 8×8 pictures."""
    torch.manual_seed(0)
    return make_source(ConvNet(), (1, 8, 8))


def count_parameters(source: SourceModel) -> ModelFigures:
    """Measure without exporting: four bytes a parameter."""
    assert source.module is not None
    parameters = sum(parameter.numel() for parameter in source.module.parameters())
    return ModelFigures(parameters, 0, 4 * parameters, 4 * parameters, 0.0, None, None, None)


def training_data(source: SourceModel, *, samples: int = 64, classes: int = 3) -> TrainingData:
    """Return labelled noise in the shape of the model's single input."""
    spec = source.inputs[0].fixed(source.axes)
    generator = np.random.default_rng(0)
    arrays = {spec.name: generator.normal(size=(samples, *spec.shape[1:])).astype(np.float32)}  # type: ignore[misc]
    labels = generator.integers(0, classes, samples)
    return TrainingData(source.inputs, arrays, labels, arrays, labels, None, None, "noise")


class SmallTraining:
    """Adam with strong weight decay and momentum over the whole set, as hard on masks as training gets."""

    def __init__(self, data: TrainingData, *, steps: int = 20) -> None:
        self.data, self.steps = data, steps
        self.calls: list[dict[str, Any]] = []
        self.seen: Callable[[nn.Module], None] = lambda module: None

    def __call__(self, module: nn.Module, table: Any, label: str, **options: Any) -> TrainingRecord:
        self.calls.append({"table": table, "label": label, **options})
        inputs = tuple(torch.from_numpy(array) for array in self.data.training.values())
        assert self.data.training_labels is not None
        labels = torch.from_numpy(self.data.training_labels)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.5)
        module.train()
        for step in range(1, self.steps + 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(*inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if options.get("after_step") is not None:
                options["after_step"](step, self.steps)
            self.seen(module)
        module.eval()
        return TrainingRecord("loss", 0.0, 0.0, 0, 1, (0.0,), "all epochs", 0.0, resumed=False, processes=1)


def refuse(*_: Any, **__: Any) -> Any:
    """Fail: this was not to be asked for."""
    raise AssertionError("this step was not to do that")


@dataclass(frozen=True, slots=True)
class StubMeter:
    """Figures that are made up by a function."""

    figures: Callable[[SourceModel], ModelFigures] = refuse

    def measure(self, source: SourceModel, folder: Path) -> ModelFigures:
        return self.figures(source)

    def race(self, folders: Sequence[Path], source: SourceModel, scratch: Path) -> list[float]:
        raise AssertionError("a step times nothing itself")


@dataclass(frozen=True, slots=True)
class StubWorkshop(Workshop):
    """A workshop in which `trainer` trains."""

    trainer: Callable[..., TrainingRecord] = refuse

    def train(self, module: nn.Module, table: Any, label: str, **options: Any) -> TrainingRecord:
        return self.trainer(module, table, label, **options)


def with_trainer(workshop: Workshop, trainer: Callable[..., TrainingRecord]) -> Workshop:
    """Return `workshop` with `trainer` in place of the loop."""
    return StubWorkshop(
        **{field.name: getattr(workshop, field.name) for field in fields(Workshop)}, trainer=trainer
    )


def make_workshop(
    source: SourceModel,
    folder: Path,
    *,
    train: Callable[..., TrainingRecord] = refuse,
    training: TrainingData | None = None,
    calibration: Any = None,
    measure: Callable[[SourceModel], ModelFigures] = count_parameters,
    recipe: Mapping[str, Any] | None = None,
) -> Workshop:
    """Return a workshop in which `measure` counts parameters, and `train` trains."""
    return StubWorkshop(
        original=source,
        recipe=RECIPE.model_copy(update=dict(recipe or {})),
        training=training,
        calibration=calibration,
        folder=folder,
        progress=Silence(),
        meter=StubMeter(measure),
        trainer=train,
    )

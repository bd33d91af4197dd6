"""Small networks of every shape that pruning meets, and a workshop without a build around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from compress_ground import StubMeter, StubWorkshop, refuse
from torch import Tensor, nn
from torch.nn import functional

from exporter.artifacts import ModelFigures, TensorSpec
from exporter.compress.base import Workshop
from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.recipe.compression import TrainingTable
from exporter.recipe.recipe import Recipe
from exporter.training.data import TrainingData
from exporter.training.record import TrainingRecord

torch.set_num_threads(1)  # networks this small lose to the threads that would share them


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32 * 16, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = functional.relu(self.second(functional.relu(self.first(image))))
        return self.head(functional.avg_pool2d(features, 2).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(32, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(inplace=True),
            nn.Conv2d(48, 32, 1),
        )
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        features = functional.relu(features + self.inner(features))
        return self.head(features.mean(dim=(2, 3)))


class Concat(nn.Module):
    """Channels meet by concatenation, are split again, and cross a channel-last stretch."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 24, 1)
        self.right = nn.Conv2d(3, 40, 3, padding=1)
        self.joined = nn.Conv2d(64, 48, 1)
        self.gated = nn.Linear(48, 64)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.cat((functional.relu(self.left(image)), self.right(image)), dim=1)
        tokens = self.joined(functional.relu(features)).flatten(2).transpose(1, 2)
        value, gate = self.gated(tokens).chunk(2, dim=2)
        return self.head((value * torch.sigmoid(gate)).mean(dim=1))


class Mobile(nn.Module):
    """Depthwise, squeeze-excite, hard-swish, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.expand = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1)
        self.project = nn.Conv2d(64, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        wide = self.depthwise(self.expand(features))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(wide.mean((2, 3), keepdim=True)))))
        return self.head((features + self.project(wide * gate)).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution and group normalisation, which must lose the same from every group."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(8, 64)
        self.last = nn.Conv2d(64, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.norm(self.grouped(functional.relu(self.first(image))))
        return self.head(functional.relu(self.last(features)).mean((2, 3)))


class FusedAttention(nn.Module):
    """Heads from one fused projection, its split along a positive axis as GPT-2 has it, or unbound as ViTs do."""

    def __init__(self, width: int, heads: int, *, unbound: bool) -> None:
        super().__init__()
        self.num_heads, self.embed_dim, self.head_dim, self.unbound = heads, width, width // heads, unbound
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        if self.unbound:
            shape = (batch, count, 3, self.num_heads, self.head_dim)
            query, key, value = self.qkv(tokens).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            query, key, value = (
                part.view(batch, count, self.num_heads, self.head_dim).transpose(1, 2)
                for part in self.qkv(tokens).split(self.embed_dim, dim=2)
            )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, self.embed_dim))


class Transformer(nn.Module):
    """Class token, position embedding, LayerNorm, attention of a chosen build, MLP: a small ViT on 8×8 images."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.positions = nn.Parameter(torch.randn(1, 17, 32) * 0.1)
        self.norm, self.attention = nn.LayerNorm(32), attention()
        self.mlp_norm = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.last_norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(image.shape[0], -1, -1), tokens), dim=1) + self.positions
        normed = self.norm(tokens)
        if isinstance(self.attention, FusedAttention):
            tokens = tokens + self.attention(normed)
        else:
            tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return self.head(self.last_norm(tokens)[:, 0])


class TiedLanguageModel(nn.Module):
    """An embedding whose table is the output head too: one parameter, pruned once."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.embedding(ids)))


def unbound_attention() -> nn.Module:
    return FusedAttention(32, 4, unbound=True)


def split_attention() -> nn.Module:
    return FusedAttention(32, 4, unbound=False)


def torch_attention() -> nn.Module:
    return nn.MultiheadAttention(32, 4, batch_first=True)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "concat": Concat,
    "mobile": Mobile,
    "grouped": Grouped,
    "unbound": lambda: Transformer(unbound_attention),
    "split": lambda: Transformer(split_attention),
    "torch attention": lambda: Transformer(torch_attention),
    "tied": TiedLanguageModel,
}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that matters: fresh networks hide mistakes behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.dim() > 1 else 0.2
            base = 0 if parameter.dim() > 1 else parameter
            parameter.copy_(base + scale * torch.randn(parameter.shape, generator=generator))
        for child in module.modules():
            if (
                isinstance(child, nn.BatchNorm2d)
                and child.running_mean is not None
                and child.running_var is not None
            ):
                child.running_mean.copy_(0.2 * torch.randn(child.running_mean.shape, generator=generator))
                child.running_var.copy_(0.5 + torch.rand(child.running_var.shape, generator=generator))
    return module.eval()


def source_of(module: nn.Module, shape: Sequence[int] = (3, 8, 8), dtype: str = "float32") -> SourceModel:
    rng = np.random.default_rng(1)
    value = rng.standard_normal((1, *shape)) if dtype == "float32" else rng.integers(0, 50, (1, *shape))
    spec = TensorSpec("input", dtype, ("batch", *shape))
    return SourceModel(
        "small", module.eval(), None, (spec,), (), {"batch": 1}, {"input": value.astype(dtype)}
    )


def network(name: str, seed: int = 0) -> SourceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = randomise(NETWORKS[name](), seed)
    return source_of(module, (6,), "int64") if name == "tied" else source_of(module)


def outputs_of(source: SourceModel, module: nn.Module, count: int = 3) -> Tensor:
    spec = source.inputs[0]
    shape = (count, *source.example[spec.name].shape[1:])
    generator = torch.Generator().manual_seed(5)
    feed = (
        torch.randint(0, 50, shape, generator=generator)
        if spec.dtype == "int64"
        else torch.randn(shape, generator=generator)
    )
    with torch.no_grad():
        return cast(Tensor, module(feed))


def workshop_of(
    source: SourceModel,
    folder: Path,
    *,
    training: TrainingData | None = None,
    calibration: Any = None,
    measure: Callable[[SourceModel], ModelFigures] = refuse,
    train: Callable[..., TrainingRecord] = refuse,
) -> Workshop:
    recipe = SimpleNamespace(training=TrainingTable(), folder=folder, resolve=lambda path: folder / path)
    return StubWorkshop(
        original=source,
        recipe=cast(Recipe, recipe),
        training=training,
        calibration=calibration,
        folder=folder,
        progress=Silence(),
        meter=StubMeter(measure),
        trainer=train,
    )


def record_of(name: str) -> TrainingRecord:
    return TrainingRecord(name, 0.0, 1.0, 1, 1, (1.0,), "all epochs", 0.1, resumed=False, processes=1)


def labelled_data(source: SourceModel, count: int = 64) -> TrainingData:
    rng = np.random.default_rng(3)
    spec = source.inputs[0]
    shape = (count, *source.example[spec.name].shape[1:])
    images = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, 5, count)
    return TrainingData(
        source.inputs, {spec.name: images}, labels, {spec.name: images[:8]}, labels[:8], None, None, "small"
    )

"""Small torch models with what makes quantisation hard, exported the way a build does, and requests for them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.arrays import Array
from exporter.artifacts import ArtifactSpec, TensorSpec
from exporter.formats.base import ProduceRequest
from exporter.quantize.integers.encodings import Encodings


class ConvNet(nn.Module):
    """Residual block with depthwise convolution, hard-swish and squeeze-excite; `image` [N,3,16,16] to [N,5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()
        )
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.squeeze = nn.Conv2d(32, 32, 1)
        self.excite = nn.Conv2d(32, 32, 1, bias=False)
        self.project = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 5, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        mixed = self.depthwise(features)
        gate = functional.hardsigmoid(
            self.excite(functional.relu(self.squeeze(mixed.mean((2, 3), keepdim=True))))
        )
        merged = features + self.project(mixed * gate)
        return self.head(functional.relu(merged).mean((2, 3)))


class Transformer(nn.Module):
    """One pre-norm block with a tied head; `tokens` int64 [N,8] to (`scores` [N,8,48], `pooled` [N,32])."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(48, 32)
        self.norm = nn.LayerNorm(32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32))
        self.head = nn.Linear(32, 48, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states = self.embedding(tokens)
        normal = self.norm(states)
        weights = torch.softmax(self.query(normal) @ self.key(normal).transpose(1, 2) / 32**0.5, dim=-1)
        states = states + weights @ self.value(normal)
        states = states + self.mlp(states)
        return self.head(states), torch.tanh(states.mean(1))


class MaskedMean(nn.Module):
    """Builds a causal mask the way transformers does (`new_ones`, `diff`, `&`); `tokens` int64 [N,8] to [N,8,16]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.output = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])
        segment = torch.diff(positions, prepend=positions[:1] - 1).ne(1).cumsum(0)
        causal = positions[None, :] <= positions[:, None]
        mask = tokens.new_ones((), dtype=torch.bool) & causal & (segment[None, :] == segment[:, None])
        weights = mask.float() / mask.float().sum(-1, keepdim=True)
        return self.output(weights @ self.embedding(tokens))


@dataclass(frozen=True, slots=True)
class Program:
    """An exported model on disk, its specs with a named batch axis, and the module for reference outputs."""

    module: nn.Module
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Path

    def feeds(self) -> list[dict[str, Array]]:
        """Return the calibration samples, in order."""
        return [dict(np.load(path)) for path in sorted(self.samples.glob("*.npz"))]

    def reference(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Return the module's own outputs by name."""
        with torch.no_grad():
            results = self.module(*(torch.from_numpy(feeds[spec.name]) for spec in self.inputs))
        results = results if isinstance(results, tuple) else (results,)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, results, strict=True)}

    def request(self, artifact: str, folder: Path, **changes: Any) -> ProduceRequest:
        """Return a request for `artifact` into `folder`; `changes` override single fields, `keep` its encodings'."""
        if "keep" in changes:
            changes["encodings"] = Encodings(keep=changes.pop("keep"))
        fields: dict[str, Any] = {
            "spec": ArtifactSpec.parse(artifact),
            "model_name": "tiny",
            "onnx": folder / "tiny.onnx",
            "program": self.path,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "axes": {"batch": 1},
            "samples": self.samples,
            "rule": "minmax",
            "destination": folder,
            "workdir": folder / "work",
            **changes,
        }
        folder.mkdir(parents=True, exist_ok=True)
        fields["workdir"].mkdir(parents=True, exist_ok=True)
        return ProduceRequest(**fields)


def conv_program(folder: Path, *, module: nn.Module | None = None) -> Program:
    """Export `ConvNet`, its weights drawn to give channels of unequal ranges."""
    torch.manual_seed(1)
    model = module or ConvNet()
    if module is None:
        for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    random = np.random.default_rng(2)
    arrays = [{"image": random.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(12)]
    spec = TensorSpec("image", "float32", ("batch", 3, 16, 16))
    return _export(model, folder, arrays, (spec,), (TensorSpec("scores", "float32", ("batch", 5)),))


def transformer_program(folder: Path) -> Program:
    """Export `Transformer`."""
    torch.manual_seed(3)
    outputs = (
        TensorSpec("scores", "float32", ("batch", 8, 48)),
        TensorSpec("pooled", "float32", ("batch", 32)),
    )
    return _export(
        Transformer(), folder, _tokens(48), (TensorSpec("tokens", "int64", ("batch", 8)),), outputs
    )


def masked_program(folder: Path) -> Program:
    """Export `MaskedMean`."""
    torch.manual_seed(4)
    output = TensorSpec("states", "float32", ("batch", 8, 16))
    return _export(
        MaskedMean(), folder, _tokens(20), (TensorSpec("tokens", "int64", ("batch", 8)),), (output,)
    )


def _tokens(vocabulary: int) -> list[dict[str, Array]]:
    random = np.random.default_rng(5)
    return [{"tokens": random.integers(0, vocabulary, (1, 8))} for _ in range(12)]


def _export(
    model: nn.Module,
    folder: Path,
    arrays: list[dict[str, Array]],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Program:
    samples = folder / "samples"
    samples.mkdir(parents=True)
    for index, sample in enumerate(arrays):
        np.savez(samples / f"{index:05d}.npz", **sample)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = tuple(torch.from_numpy(arrays[0][spec.name]) for spec in inputs)
        torch.export.save(torch.export.export(model, example), folder / "tiny.pt2")
    return Program(model, folder / "tiny.pt2", inputs, outputs, samples)


def sqnr_db(reference: Array, value: Array) -> float:
    """Return 10·log10(Σ reference² / Σ error²)."""
    error = float(np.square(reference.astype(np.float64) - value).sum())
    return float("inf") if error == 0 else 10 * np.log10(float(np.square(reference).sum()) / error)

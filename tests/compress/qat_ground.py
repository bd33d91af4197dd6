"""What tests of quantisation-aware training stand on: small nets, data they can learn, and the exporter's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from compress_ground import StubMeter
from onnx.reference import ReferenceEvaluator
from torch import nn

from calibration.collect import collect
from calibration.dataset import ArrayDataset
from exporter.artifacts import TensorSpec
from exporter.compress.base import Workshop
from exporter.judging.metrics import top1
from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.quantize import quantize
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import activation_values
from exporter.recipe.compression import TrainingTable
from exporter.recipe.recipe import ModelTable, QuantizeTable, Recipe
from exporter.schemes import Scheme
from exporter.stages.measure import export
from exporter.training.data import TrainingData

IMAGE = (TensorSpec("image", "float32", ("batch", 1, 8, 8)),)
IDS = (TensorSpec("ids", "int64", ("batch", 6)),)


class Eyes(nn.Module):
    """Convolutions with norms, a residual add, a depthwise layer, a widened linear part; 8×8 pictures to 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6())
        self.mix = nn.Conv2d(12, 12, 1)
        self.wide = nn.Linear(48, 40)
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = self.stem(image)
        features = self.mix(self.depth(stem) + stem)
        wide: torch.Tensor = self.head(
            nn.functional.gelu(self.norm(self.wide(nn.functional.max_pool2d(features, 4).flatten(1))))
        )
        return wide


class Ears(nn.Module):
    """Tied embedding and head, fresh norms (all ones) and attention; 6 ids below 80 to logits of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(80, 32)
        self.block = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True, dropout=0.0)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 80)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"next": self.head(self.norm(self.block(self.table(ids)))[:, -1])}


def eyes() -> SourceModel:
    torch.manual_seed(0)
    net = Eyes()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            part.running_var.uniform_(0.2, 2)  # type: ignore[union-attr]
            part.weight.data.uniform_(0.5, 2)
    example = {"image": pictures(1)[0]}
    return SourceModel("eyes", net.eval(), None, IMAGE, (), {"batch": 1}, example)


def ears() -> SourceModel:
    torch.manual_seed(0)
    return SourceModel(
        "ears", Ears().eval(), None, IDS, (), {"batch": 1}, {"ids": np.zeros((1, 6), np.int64)}
    )


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures with one bright quarter, and which quarter it is."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.6, (count, 1, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5 + 0.4 * label
    return images, labels


def sentences(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids, and as label the last of them."""
    ids = np.random.default_rng(seed).integers(0, 80, (count, 6))
    return ids, ids[:, -1]


def samples_of(source: SourceModel, count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    name = source.inputs[0].name
    arrays, labels = pictures(count, seed) if name == "image" else sentences(count, seed)
    return {name: arrays}, labels


def recipe(scheme: str, keep: Sequence[str] = (), training: TrainingTable | None = None) -> Recipe:
    return Recipe(
        model=ModelTable(name="net", version="1.0.0", path="net.onnx"),
        quantize=QuantizeTable(scheme=scheme, keep=tuple(keep), rule="minmax"),
        training=training or TrainingTable(epochs=1, batch_size=32, teacher=0.0),
        folder=Path(),
    )


def workshop(
    source: SourceModel,
    scheme: str,
    folder: Path,
    *,
    keep: Sequence[str] = (),
    training: TrainingTable | None = None,
    calibrated: bool = True,
    trained: bool = True,
) -> Workshop:
    folder.mkdir(parents=True, exist_ok=True)
    arrays, labels = samples_of(source, 192, seed=1)
    held, held_labels = samples_of(source, 48, seed=2)
    data = TrainingData(source.inputs, arrays, labels, held, held_labels, "top1", top1, "data")
    shown, _ = samples_of(source, 32, seed=3)
    return Workshop(
        original=source,
        recipe=recipe(scheme, keep, training),
        training=data if trained else None,
        calibration=ArrayDataset(shown) if calibrated else None,
        folder=folder,
        progress=Silence(),
        meter=StubMeter(),
    )


def exported(source: SourceModel, given: Workshop) -> Path:
    """Return the tidy float ONNX of `source`."""
    return export(source, given.folder / "exported" / "float32.onnx")


def quantized(source: SourceModel, scheme: str, given: Workshop) -> tuple[ir.Model, frozenset[str]]:
    """Return the file that the exporter makes of `source`, and the names of the operators it quantised."""
    path = exported(source, given)
    model, parsed, keep = ir.load(path), Scheme.parse(scheme), given.recipe.quantize.keep
    ranges = {}
    if parsed.needs_calibration and given.calibration is not None:
        statistics = collect(path, activation_values(model, keep), given.calibration)
        ranges = choose_ranges(model, statistics, "minmax", keep, source.ranges)
    encodings = Encodings(ranges=ranges, keep=keep)
    file, coverage = quantize(model, parsed, encodings=encodings, axes=source.axes)
    return file, frozenset(layer.name for layer in coverage.layers if layer.quantized)


def run_file(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, dict(feeds))[0])


def run_reference(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model)
    # The reference has DequantizeLinear from opset 19, whose meaning for int8 is that of opset 13.
    proto.opset_import[0].version = 19
    return np.asarray(ReferenceEvaluator(proto).run(None, dict(feeds))[0])


def run_module(module: nn.Module, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        result = module(*(torch.from_numpy(array) for array in feeds.values()))
    tensor = result if isinstance(result, torch.Tensor) else next(iter(result.values()))
    return np.asarray(tensor.numpy())


def sqnr_db(want: np.ndarray, have: np.ndarray) -> float:
    noise = float(((want.astype(np.float64) - have) ** 2).sum())
    return float(10 * np.log10(float((want.astype(np.float64) ** 2).sum()) / max(noise, 1e-30)))

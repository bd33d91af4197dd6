"""What tests of the students stand on: small members of each family, and their way through every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from calibration.collect import collect
from calibration.dataset import ListDataset
from exporter.artifacts import Artifact, ArtifactSpec, Fidelity, Format, TensorSpec
from exporter.formats.base import ProduceRequest
from exporter.formats.producers import produce
from exporter.judging.metrics import compare_outputs
from exporter.model.capture import save_program
from exporter.model.source import SourceModel
from exporter.model.to_onnx import check_parity
from exporter.quantize.integers.encodings import PLAIN, Encodings
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import activation_values
from exporter.runtimes.worker import open_model, write_sample
from exporter.stages.measure import export
from exporter.students.catalogue import build_student

CLASSES = 5
VOCABULARY = 60


@dataclass(frozen=True, slots=True)
class Case:
    """A member of a family, small enough to convert in seconds."""

    family: str
    inputs: tuple[TensorSpec, ...]
    width: float = 1.0
    depth: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


def image(size: int = 32, channels: int = 3) -> tuple[TensorSpec, ...]:
    return (TensorSpec("image", "float32", ("batch", channels, size, size)),)


def tokens(*names: str, length: int | str = 12) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "int64", ("batch", length)) for name in names)


MFCC = (TensorSpec("mfcc", "float32", ("batch", 1, 49, 10)),)
_SMALL_ENCODER = {"hidden": 64, "heads": 4, "ffn": 128, "layers": 2, "vocabulary": VOCABULARY}
CASES = {
    "v2": Case("mobilenet-v2", image(), width=0.35, depth=0.5, options={"features": 128}),
    "v3-small": Case("mobilenet-v3-small", image(), width=0.5, depth=0.6),
    "v3-large-relu": Case(
        "mobilenet-v3-large",
        image(),
        width=0.35,
        depth=0.5,
        options={"activation": "relu", "squeeze_excite": False},
    ),
    "lite0": Case("efficientnet-lite0", image(), width=0.35, depth=0.5, options={"features": 128}),
    "encoder": Case("minilm-l6", tokens("ids", "mask"), options=_SMALL_ENCODER),
    "encoder-mean": Case(
        "tinybert-4",
        tokens("ids", "type_ids", "attention_mask"),
        options={**_SMALL_ENCODER, "pool": "mean", "normalize": True},
    ),
    "encoder-padding": Case(
        "minilm-l6", tokens("ids"), options={**_SMALL_ENCODER, "padding": 0, "activation": "relu"}
    ),
    "ds-cnn": Case("ds-cnn-s", MFCC, width=0.5),
}


def logits(classes: int = CLASSES) -> tuple[TensorSpec, ...]:
    return (TensorSpec("logits", "float32", ("batch", classes)),)


def feeds(
    inputs: tuple[TensorSpec, ...], count: int, seed: int, axes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return `count` samples: normal noise, or ids with padding after a random length and masks to match."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    fixed = [spec.fixed({**axes, "batch": count}) for spec in inputs]
    if fixed[0].dtype == "float32":
        return {spec.name: random.normal(size=spec.shape).astype(np.float32) for spec in fixed}  # type: ignore[arg-type]
    length = int(fixed[0].shape[1])
    seen = np.arange(length)[None, :] < random.integers(4, length + 1, count)[:, None]
    for spec in fixed:
        if "mask" in spec.name:
            arrays[spec.name] = seen.astype(np.int64)
        elif "type" in spec.name:
            arrays[spec.name] = np.where(np.arange(length) < length // 2, 0, 1)[None].repeat(count, 0)
        else:
            arrays[spec.name] = np.where(seen, random.integers(1, VOCABULARY, (count, length)), 0)
    return arrays


def settle(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> nn.Module:
    """Give norms scales, shifts and statistics of some data, as training would: without, deep nets fade."""
    generator = torch.Generator().manual_seed(2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.2, generator=generator)
    module.train()
    with torch.no_grad():
        for seed in range(12):
            batch = feeds(inputs, 16, 100 + seed, {})
            module(*(torch.from_numpy(batch[spec.name]) for spec in inputs))
    return module.eval()


def student_source(case: Case, axes: Mapping[str, int] | None = None) -> SourceModel:
    sizes = {"batch": 1, **(axes or {})}
    module = build_student(
        case.family, case.inputs, logits(), width=case.width, depth=case.depth, options=case.options, seed=1
    )
    if axes is None:
        settle(module, case.inputs)
    example = feeds(case.inputs, 1, 7, sizes)
    return SourceModel("student", module, None, case.inputs, ("logits",), sizes, example)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A student on its way through the formats: the float graph, its parity, and the samples shown."""

    source: SourceModel
    onnx: Path
    parity: Fidelity
    samples: tuple[dict[str, np.ndarray], ...]
    folder: Path

    @classmethod
    def make(cls, source: SourceModel, folder: Path) -> Shipped:
        samples = tuple(feeds(source.inputs, 1, seed, source.axes) for seed in range(24))
        onnx = export(source, folder / "float32.onnx")
        parity = check_parity(source, onnx, samples[:4])
        (folder / "samples").mkdir()
        for number, sample in enumerate(samples):
            write_sample(folder / "samples", number, sample)
        return cls(source, onnx, parity, samples, folder)

    def produce(self, artifact: str) -> Artifact:
        spec = ArtifactSpec.parse(artifact)
        program = save_program(self.source, self.folder / "program.pt2") if spec.format.needs_torch else None
        encodings = PLAIN
        if spec.scheme.needs_calibration and not spec.format.needs_torch:
            names = activation_values(ir.load(self.onnx), ())
            statistics = collect(self.onnx, names, ListDataset(list(self.samples)), threads=1)
            encodings = Encodings(choose_ranges(ir.load(self.onnx), statistics, "minmax", (), {}))
        return produce(
            ProduceRequest(
                spec=spec,
                model_name="student",
                onnx=self.onnx,
                program=program,
                inputs=self.source.inputs,
                outputs=logits(),
                axes=self.source.axes,
                samples=self.folder / "samples",
                rule="minmax",
                encodings=encodings,
                destination=self.folder,
                workdir=self.folder / "work",
            )
        )

    def fidelity(self, artifact: Artifact) -> Fidelity:
        """Return how close the file's answers to the samples are to the torch module's."""
        model = open_model(artifact.path, artifact.spec.format)
        want = [{"logits": self.source.forward(sample)[0]} for sample in self.samples]
        return compare_outputs(want, [model.run(sample) for sample in self.samples])


RUNS = {Format.ONNX, Format.TFLITE}

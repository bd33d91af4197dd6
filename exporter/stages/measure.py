"""SourceModel → ModelFigures: export it, and measure the file that came out.

What a compression method claims is believed only of the exported graph: zeros that nobody skips and branches
that nobody removed show up here as the bytes and milliseconds they still cost.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from exporter.artifacts import Format, ModelFigures
from exporter.judging.reference import latency_of
from exporter.judging.scoring import Judging
from exporter.model.graph import FLOAT_TYPES, node_macs, parameter_count
from exporter.model.onnx_write import save_onnx
from exporter.model.source import SourceModel
from exporter.model.tidy import tidy
from exporter.model.to_onnx import to_onnx
from exporter.runtimes.race import race
from exporter.runtimes.worker import read_samples, run_artifact, write_sample
from exporter.system.files import size_bytes

MEASURED_FILE = "measured.onnx"
_DEFLATE_LEVEL = 6
_CHUNK_BYTES = 1 << 20


class Meter(Protocol):
    """How one learns what the models cost that are made on the way to an artifact."""

    def measure(self, source: SourceModel, folder: Path) -> ModelFigures:
        """Return the figures of `source` as exported; `folder` is scratch."""

    def race(self, folders: Sequence[Path], source: SourceModel, scratch: Path) -> list[float]:
        """Return the median milliseconds of the models measured in `folders`; NaN where nothing is timed."""


@dataclass(frozen=True, slots=True)
class TimedMeter:
    """A `Meter` that runs what it exports: it times inferences, and with `judging` it scores their answers."""

    judging: Judging | None = None

    def measure(self, source: SourceModel, folder: Path) -> ModelFigures:
        """Return what `measure` returns."""
        return measure(source, folder, self.judging)

    def race(self, folders: Sequence[Path], source: SourceModel, scratch: Path) -> list[float]:
        """Return the median milliseconds of one inference on `source.example`, of all in turns."""
        entrants = [(folder / MEASURED_FILE, Format.ONNX) for folder in folders]
        return race(entrants, [source.example] * len(entrants), scratch)


def export(source: SourceModel, path: Path) -> Path:
    """Write the tidy float graph of `source` to `path` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_onnx(tidy(to_onnx(source), source.inputs), path)
    return path


def measure(source: SourceModel, folder: Path, judging: Judging | None = None) -> ModelFigures:
    """Return the figures of `source` as exported; with `judging`, its score too. `folder` is scratch.

    Latency is the median of single inferences on `source.example`, one thread, in a process of its own.
    Raises what exporting raises: a model that cannot be exported cannot be measured.
    """
    path = export(source, folder / MEASURED_FILE)
    return measure_file(path, source, folder, judging)


def measure_file(
    path: Path, source: SourceModel, folder: Path, judging: Judging | None = None
) -> ModelFigures:
    """Return the figures of the ONNX file `path`, which `source` was exported to."""
    inputs, outputs = folder / "inputs", folder / "outputs"
    for place in (inputs, outputs):
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*.npz"):
            old.unlink()
    scored = judging is not None and judging.scores
    write_sample(inputs, 0, source.example)
    if scored and judging is not None:
        for number, sample in enumerate(judging.samples, start=1):
            write_sample(inputs, number, sample)
    record = run_artifact(path, Format.ONNX, inputs, outputs, log=folder / "measuring.log")
    score = None if judging is None or not scored else judging.score(list(read_samples(outputs))[1:])
    latency = latency_of(record)
    graph = ir.load(path)
    return ModelFigures(
        parameters=parameter_count(graph),
        macs=sum(node_macs(graph, source.axes).values()),
        size_bytes=sum(size_bytes(file) for file in _files_of(path)),
        download_bytes=sum(deflated_bytes(file) for file in _files_of(path)),
        zero_share=_zero_share(graph),
        p50_ms=None if latency is None else latency.p50_ms,
        metric=judging.metric_name if scored and judging is not None else None,
        score=score,
    )


def _files_of(path: Path) -> list[Path]:
    return [path, *path.parent.glob(f"{path.name}.data")]


def deflated_bytes(path: Path) -> int:
    """Return how many bytes `path` takes after deflate (level 6), as app stores and `.aar` files ship it."""
    packer, total = zlib.compressobj(_DEFLATE_LEVEL), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def _zero_share(graph: ir.Model) -> float:
    zeros = total = 0
    for value in graph.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in FLOAT_TYPES:
            array = value.const_value.numpy()
            zeros, total = zeros + int(np.count_nonzero(array == 0)), total + array.size
    return zeros / total if total else 0.0

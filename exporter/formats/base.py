"""What every format's producer is asked for and answers with.

A producer turns one model into one file: it decides nothing about targets and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exporter.artifacts import ArtifactSpec, TensorSpec
from exporter.quantize.integers.encodings import Encodings


@dataclass(frozen=True, slots=True)
class ProduceRequest:
    """Everything a producer may use; it writes into `destination` and nowhere else (scratch: `workdir`).

    `onnx` is the tidy float32 graph with named axes; `program` the `.pt2` exported program of fixed shapes
    that this same build wrote (`None` when the model came as ONNX); `inputs`/`outputs` are the model's
    specs with named axes, `axes` the sizes that fix them; `samples` is a folder `00000.npz, 00001.npz, …`
    of calibration samples in calibration order (`None` if the scheme needs none); `encodings` what calibration,
    training and recovery have settled for `onnx`; `rule` chooses the ranges of tensors that only another format has;
    `metadata` are the texts that the file carries, by key (`exporter.bundle.contract.file_metadata`).
    """

    spec: ArtifactSpec
    model_name: str
    onnx: Path
    program: Path | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, int]
    samples: Path | None
    rule: str
    destination: Path
    workdir: Path
    encodings: Encodings = field(default_factory=Encodings)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def keep(self) -> tuple[str, ...]:
        """Glob patterns and names of operators that stay float."""
        return self.encodings.keep

    @property
    def path(self) -> Path:
        """Where the artifact goes."""
        return self.destination / self.spec.file_name(self.model_name)

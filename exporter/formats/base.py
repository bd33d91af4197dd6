"""What every format's producer is asked for and answers with.

A producer turns one model into one file: it decides nothing about targets and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import ArtifactSpec, TensorSpec

if TYPE_CHECKING:
    from calibration.collect import Statistics


@dataclass(frozen=True, slots=True)
class ProduceRequest:
    """Everything a producer may use; it writes into `destination` and nowhere else (scratch: `workdir`).

    `onnx` is the tidy float32 graph with named axes; `program` the `.pt2` exported program of fixed shapes
    that this same build wrote (`None` when the model came as ONNX); `inputs`/`outputs` are the model's
    specs with named axes, `axes` the sizes that fix them; `samples` is a folder `00000.npz, 00001.npz, …`
    of calibration samples in calibration order (`None` if the scheme needs none); `statistics` what was
    seen while running them through `onnx`; `settled` are ranges that training has fixed, by value name, which
    overrule what `statistics` and `rule` say; `rule` names the range rule; `keep` are glob patterns of
    layer names that stay float.
    """

    spec: ArtifactSpec
    model_name: str
    onnx: Path
    program: Path | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, int]
    samples: Path | None
    statistics: Statistics | None
    rule: str
    keep: tuple[str, ...]
    destination: Path
    workdir: Path
    settled: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the artifact goes."""
        return self.destination / self.spec.file_name(self.model_name)

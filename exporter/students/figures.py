"""Parameters and multiply-accumulates of a torch module, counted without computing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from exporter.artifacts import TensorSpec
from exporter.students.catalogue import build_student

_FLOPS_PER_MAC = 2
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class StudentFigures:
    """Trainable parameters, multiply-accumulates of one inference at batch 1, and bytes of float32 weights.

    Convolutions, linear layers and matrix products are counted, as `exporter.model.graph.node_macs` does. Parameters
    are torch's: batch norms, which an exported file folds away, are among them.
    """

    parameters: int
    macs: int
    weight_bytes: int


def count_student(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axes: Mapping[str, int] | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> StudentFigures:
    """Return the figures of a student without allocating it; named axes count 1 unless `axes` says.

    Raises what `exporter.students.catalogue.build_student` raises.
    """
    with torch.device("meta"):
        module = build_student(name, inputs, outputs, axes=axes, width=width, depth=depth, options=options)
        feeds = [
            torch.zeros(
                [axis if isinstance(axis, int) else (axes or {}).get(axis, 1) for axis in spec.shape],
                dtype=getattr(torch, spec.dtype),
            )
            for spec in inputs
        ]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*feeds)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return StudentFigures(parameters, counter.get_total_flops() // _FLOPS_PER_MAC, parameters * FLOAT_BYTES)

"""The one noun that knows torch: a model as the stages pass it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A float model and what is known of it: a torch module in eval mode, or an ONNX file.

    Exactly one of `module` and `onnx` is set. `inputs` are in the order of `forward`'s arguments; `outputs`
    are the names the recipe wants (empty: the exporter names them); `example` holds one sample per input,
    shaped as `inputs` with named axes sized by `axes`. `ranges` are activation ranges (low, high) that
    quantisation-aware training has settled, by the value's name in the tidy ONNX graph: calibration does not
    overrule them.
    """

    name: str
    module: torch.nn.Module | None
    onnx: Path | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, int]
    example: Mapping[str, np.ndarray]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def forward(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the torch module for `feeds` (name → array), in the module's order."""
        import torch

        if self.module is None:
            raise TypeError("this model came as ONNX and has no torch module")
        with torch.no_grad():
            result = self.module(
                *(torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs)
            )
        return [tensor.numpy() for tensor in flatten_outputs(result)]


def flatten_outputs(result: object) -> list[torch.Tensor]:
    """Return the tensors in a module's result (tensor, tuple, list, dict or model output) in order."""
    import torch
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

"""What tests of the stages stand on: small torch modules as the pipeline passes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from exporter.artifacts import TensorSpec
from exporter.model.source import SourceModel


class ConvNet(torch.nn.Module):
    """Conv, BatchNorm, ReLU, mean over the picture, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 3]."""
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3), keepdim=True).flatten(1))


class TwoHeads(torch.nn.Module):
    """Two inputs, two outputs in a dict."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return sum and difference."""
        return {"sum": left + right, "difference": left - right}


def make_source(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int | str, ...]],
    *,
    outputs: tuple[str, ...] = (),
    axes: Mapping[str, int] | None = None,
) -> SourceModel:
    """Return `module` with float32 inputs of `shapes`; named axes are of size 1 unless `axes` says."""
    sizes = {axis: 1 for shape in shapes.values() for axis in shape if isinstance(axis, str)} | dict(
        axes or {}
    )
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    generator = np.random.default_rng(0)
    example = {
        spec.name: generator.uniform(0, 1, spec.fixed(sizes).shape).astype(np.float32)
        for spec in inputs  # type: ignore[arg-type]
    }
    return SourceModel("net", module.eval(), None, inputs, outputs, sizes, example)


def conv_source() -> SourceModel:
    """Return a `ConvNet` whose normalisation is not the identity."""
    torch.manual_seed(0)
    net = ConvNet()
    net.norm.running_mean.normal_()  # type: ignore[union-attr, operator]
    net.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    return make_source(net, {"image": ("batch", 1, 8, 8)})

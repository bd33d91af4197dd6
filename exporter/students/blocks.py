"""What the convolutional families are built of: inverted residuals, gates, and the classifier around them.

Written for export: every layer is a module of its own with a name, no Python number is taken from the batch
axis, and pooling is a mean over axes, which converters agree on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.errors import RecipeError
from exporter.students.fit import ImageSize

LEAST_FINAL_SIDE = 4
"""A last feature map below 4×4 has no picture left in it; 224/32 leaves 7×7."""
GREATEST_REDUCTION = 32
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
}


@dataclass(frozen=True, slots=True)
class Block:
    """One inverted residual: `squeezed` are the channels of its gate's middle (0: no gate)."""

    in_channels: int
    expanded: int
    out_channels: int
    kernel: int
    stride: int
    activation: str
    squeezed: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole image classifier; `hidden` is the width of a layer before the classes (0: none)."""

    stem_channels: int
    stem_stride: int
    stem_activation: str
    blocks: tuple[Block, ...]
    features: int
    features_activation: str
    hidden: int
    dropout: float
    norm_eps: float


def round_channels(channels: float, multiple: int = 8) -> int:
    """Return the multiple nearest to `channels`, never less than 90 % of it (Sandler et al. 2018)."""
    nearest = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * channels else nearest + multiple


def scaled_repeats(repeats: int, depth: float) -> int:
    """Return how often a block is repeated at `depth`: rounded up, as EfficientNet does, at least once."""
    return max(1, math.ceil(repeats * depth - 1e-9))


def fitted(layout: Layout, size: ImageSize, options: Mapping[str, Any]) -> Layout:
    """Return `layout` with the kernels and strides that `options` ask for, or that suit `size`.

    `kernel` replaces that of every depthwise convolution. Raises `RecipeError` (2) as `with_reduction` does.
    """
    kernel = options["kernel"]
    if kernel is not None:
        blocks = tuple(dataclasses.replace(block, kernel=kernel) for block in layout.blocks)
        layout = dataclasses.replace(layout, blocks=blocks)
    return with_reduction(layout, size, options["reduction"])


def with_reduction(layout: Layout, size: ImageSize, asked: int | None) -> Layout:
    """Return `layout` with as many of its first strides left out as a small input needs.

    `asked` is the option `reduction`; without it, it is the largest power of two that leaves
    `LEAST_FINAL_SIDE` pixels, at most 32. Raises `RecipeError` (2) for other numbers than powers of two up to 32.
    """
    reduction = asked or _fitting_reduction(size)
    if reduction not in {1, 2, 4, 8, 16, GREATEST_REDUCTION}:
        raise RecipeError(f"option reduction is {reduction}", fix="choose 1, 2, 4, 8, 16 or 32")
    halvings = (layout.stem_stride == 2) + sum(block.stride == 2 for block in layout.blocks)
    excess = halvings - reduction.bit_length() + 1
    stem_stride = layout.stem_stride
    if excess > 0 and stem_stride == 2:
        stem_stride, excess = 1, excess - 1
    blocks: list[Block] = []
    for block in layout.blocks:
        if excess > 0 and block.stride == 2:
            block = dataclasses.replace(block, stride=1)  # noqa: PLW2901
            excess -= 1
        blocks.append(block)
    return dataclasses.replace(layout, stem_stride=stem_stride, blocks=tuple(blocks))


def _fitting_reduction(size: ImageSize) -> int:
    shortest = min(size.height, size.width)
    reduction = 1
    while reduction < GREATEST_REDUCTION and shortest // (2 * reduction) >= LEAST_FINAL_SIDE:
        reduction *= 2
    return reduction


def conv_norm(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = None,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Return convolution, batch norm and activation (`None`: linear) over `[N, C, H, W]`, same padding."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        # The papers average over very long trainings (momentum 0.01 and less); a student often sees a few
        # hundred steps, in which that would not leave the initial value: torch's 0.1.
        nn.BatchNorm2d(out_channels, eps=eps),
    ]
    if activation is not None:
        layers.append(_ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Rescales each channel by a gate in 0..1 made from its mean (Hu et al. 2018; hard sigmoid: Howard 2019)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.activation = nn.ReLU()
        self.excite = nn.Conv2d(squeezed, channels, kernel_size=1)
        self.gate = nn.Hardsigmoid()

    def forward(self, features: Tensor) -> Tensor:
        """Gate `[N, C, H, W]` features; same shape out."""
        pooled = features.mean(dim=(2, 3), keepdim=True)
        gated: Tensor = features * self.gate(self.excite(self.activation(self.squeeze(pooled))))
        return gated


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, optional gate, project 1×1; the input is added where shapes allow it."""

    def __init__(self, block: Block, eps: float) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        if block.expanded != block.in_channels:
            layers["expand"] = conv_norm(
                block.in_channels, block.expanded, activation=block.activation, eps=eps
            )
        layers["depthwise"] = conv_norm(
            block.expanded,
            block.expanded,
            kernel=block.kernel,
            stride=block.stride,
            groups=block.expanded,
            activation=block.activation,
            eps=eps,
        )
        if block.squeezed:
            layers["gate"] = SqueezeExcite(block.expanded, block.squeezed)
        layers["project"] = conv_norm(block.expanded, block.out_channels, eps=eps)
        self.branch = nn.Sequential()
        for name, layer in layers.items():
            self.branch.add_module(name, layer)
        self.has_shortcut = block.stride == 1 and block.in_channels == block.out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Map `[N, C_in, H, W]` to `[N, C_out, H / stride, W / stride]`."""
        projected: Tensor = self.branch(features)
        return features + projected if self.has_shortcut else projected


class ImageClassifier(nn.Module):
    """Stem, inverted residuals, a 1×1 convolution, the mean over the map, and a linear classifier."""

    def __init__(self, layout: Layout, in_channels: int, classes: int) -> None:
        super().__init__()
        eps = layout.norm_eps
        self.stem = conv_norm(
            in_channels,
            layout.stem_channels,
            kernel=3,
            stride=layout.stem_stride,
            activation=layout.stem_activation,
            eps=eps,
        )
        self.blocks = nn.Sequential(*(InvertedResidual(block, eps) for block in layout.blocks))
        last = layout.blocks[-1].out_channels
        self.features = conv_norm(last, layout.features, activation=layout.features_activation, eps=eps)
        self.classifier = _classifier(layout, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[N, classes]` for images `[N, C, H, W]`."""
        features = self.features(self.blocks(self.stem(image)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def _classifier(layout: Layout, classes: int) -> nn.Sequential:
    layers = nn.Sequential()
    width = layout.features
    if layout.hidden:
        layers.add_module("hidden", nn.Linear(width, layout.hidden))
        layers.add_module("activation", _ACTIVATIONS[layout.features_activation]())
        width = layout.hidden
    layers.add_module("dropout", nn.Dropout(layout.dropout))
    layers.add_module("output", nn.Linear(width, classes))
    return layers


def draw_convolutional_weights(module: nn.Module, *, linear_std: float | None) -> None:
    """Draw weights in place: convolutions normal with variance 2 / fan-out (He et al. 2015), norms identity.

    The fan-out counts groups, so that depthwise layers start at the scale of the others, as in the published
    code of EfficientNet. Linear layers are normal of `linear_std`, or uniform within 1/√outputs for `None`.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.Linear):
            if linear_std is None:
                bound = 1 / math.sqrt(layer.out_features)
                nn.init.uniform_(layer.weight, -bound, bound)
            else:
                nn.init.normal_(layer.weight, 0.0, linear_std)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, torch.Tensor):
            nn.init.zeros_(bias)

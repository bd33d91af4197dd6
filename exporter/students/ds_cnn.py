"""DS-CNN for keywords and other short sounds (Zhang et al. 2017, "Hello Edge"): small, medium, large.

Reads features, not samples: MFCC or log-mel frames `[batch, 1, time, bands]`, published with 49×10. Paddings are
symmetric, which every runtime fuses into its convolution; TensorFlow's "same" would pad one band more on one side
of the medium and large nets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from exporter.artifacts import TensorSpec
from exporter.students.blocks import conv_norm, round_channels, scaled_repeats
from exporter.students.catalogue import Family
from exporter.students.fit import class_count, image_size

_STEM_KERNEL, _STEM_PADDING = (10, 4), (5, 1)
_BLOCK_KERNEL = 3


class DsCnn(nn.Module):
    """A 10×4 convolution, depthwise separable blocks, the mean over the map, and a linear classifier."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        blocks: int,
        halved_late: bool,
        kernel: int,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        # The larger nets keep all bands in the stem and halve time and bands in the first block.
        self.stem = nn.Sequential(
            nn.Conv2d(
                in_channels,
                channels,
                _STEM_KERNEL,
                stride=(2, 1) if halved_late else 2,
                padding=_STEM_PADDING,
                bias=False,
            ),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential()
        for number in range(blocks):
            stride = 2 if halved_late and number == 0 else 1
            depthwise = conv_norm(
                channels, channels, kernel=kernel, stride=stride, groups=channels, activation="relu"
            )
            self.blocks.append(nn.Sequential(depthwise, conv_norm(channels, channels, activation="relu")))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits `[N, classes]` for `[N, channels, time, bands]`."""
        features = self.blocks(self.stem(frames))
        logits: Tensor = self.classifier(self.dropout(features.mean(dim=(2, 3))))
        return logits


def build(
    family: Family,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axes: Mapping[str, int],
    width: float,
    depth: float,
    options: Mapping[str, Any],
) -> nn.Module:
    """Return a DS-CNN, its weights drawn as TensorFlow's default for these layers: Glorot and Bengio 2010."""
    size, classes = image_size(family, inputs, axes), class_count(family, outputs)
    module = DsCnn(
        in_channels=size.channels,
        channels=round_channels(family.preset["channels"] * width, options["round_to"]),
        blocks=scaled_repeats(family.preset["blocks"], depth),
        halved_late=family.preset["halved_late"],
        kernel=options["kernel"] or _BLOCK_KERNEL,
        classes=classes,
        dropout=options["dropout"],
    )
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module

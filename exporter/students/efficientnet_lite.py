"""EfficientNet-Lite0 to 4 (Liu 2020): EfficientNet (Tan and Le 2019) without gates, with ReLU6.

Compound scaling as published: stem, first and last stage keep their size in all five. Stochastic depth is left
out: it is for trainings far longer than a student's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from exporter.artifacts import TensorSpec
from exporter.students.blocks import (
    Block,
    ImageClassifier,
    Layout,
    draw_convolutional_weights,
    fitted,
    round_channels,
    scaled_repeats,
)
from exporter.students.catalogue import Family
from exporter.students.fit import class_count, image_size

# Table 1 of the EfficientNet paper: kernel, expansion, channels, repeats, first stride.
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
_STEM, _FEATURES = 32, 1280


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
    """Return an EfficientNet-Lite; `width` and `depth` come on top of the member's own scaling."""
    size, classes = image_size(family, inputs, axes), class_count(family, outputs)
    widened, deepened = width * family.preset["base_width"], family.preset["base_depth"]
    channels = stem = round_channels(_STEM * width)
    blocks: list[Block] = []
    for number, (kernel, expansion, published, repeats, first_stride) in enumerate(_STAGES):
        is_edge = number in {0, len(_STAGES) - 1}
        own = repeats if is_edge else scaled_repeats(repeats, deepened)
        for index in range(scaled_repeats(own, depth)):
            out, stride = round_channels(published * widened), first_stride if index == 0 else 1
            blocks.append(Block(channels, channels * expansion, out, kernel, stride, "relu6"))
            channels = out
    features = options["features"] or round_channels(_FEATURES * max(1.0, width))
    layout = Layout(stem, 2, "relu6", tuple(blocks), features, "relu6", 0, options["dropout"], 1e-3)
    module = ImageClassifier(fitted(layout, size, options), size.channels, classes)
    draw_convolutional_weights(module, linear_std=None)
    return module

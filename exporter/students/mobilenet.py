"""MobileNetV2 (Sandler et al. 2018) and MobileNetV3 large and small (Howard et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# Table 2 of the paper: expansion, channels, repeats, first stride.
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def build_v2(
    family: Family,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axes: Mapping[str, int],
    width: float,
    depth: float,
    options: Mapping[str, Any],
) -> nn.Module:
    """Return a MobileNetV2. As published, the last convolution keeps 1280 channels at widths below 1."""
    size, classes = image_size(family, inputs, axes), class_count(family, outputs)
    stem = round_channels(32 * width)
    blocks: list[Block] = []
    channels = stem
    for expansion, published, repeats, first_stride in _V2_STAGES:
        for index in range(scaled_repeats(repeats, depth)):
            out, stride = round_channels(published * width), first_stride if index == 0 else 1
            blocks.append(Block(channels, channels * expansion, out, 3, stride, "relu6"))
            channels = out
    features = options["features"] or round_channels(1280 * max(1.0, width))
    layout = Layout(stem, 2, "relu6", tuple(blocks), features, "relu6", 0, options["dropout"], 1e-5)
    module = ImageClassifier(fitted(layout, size, options), size.channels, classes)
    draw_convolutional_weights(module, linear_std=0.01)
    return module


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of tables 1 and 2: kernel, expanded and output channels, gate, hard-swish, stride."""

    kernel: int
    expanded: int
    channels: int
    gated: bool
    swish: bool
    stride: int


_LARGE = (
    (_Row(3, 16, 16, False, False, 1),),
    (_Row(3, 64, 24, False, False, 2), _Row(3, 72, 24, False, False, 1)),
    (_Row(5, 72, 40, True, False, 2), *[_Row(5, 120, 40, True, False, 1)] * 2),
    (_Row(3, 240, 80, False, True, 2), _Row(3, 200, 80, False, True, 1), *[_Row(3, 184, 80, False, True, 1)] * 2),
    (_Row(3, 480, 112, True, True, 1), _Row(3, 672, 112, True, True, 1)),
    (_Row(5, 672, 160, True, True, 2), *[_Row(5, 960, 160, True, True, 1)] * 2),
)  # fmt: skip
_SMALL = (
    (_Row(3, 16, 16, True, False, 2),),
    (_Row(3, 72, 24, False, False, 2), _Row(3, 88, 24, False, False, 1)),
    (_Row(5, 96, 40, True, True, 2), *[_Row(5, 240, 40, True, True, 1)] * 2),
    (_Row(5, 120, 48, True, True, 1), _Row(5, 144, 48, True, True, 1)),
    (_Row(5, 288, 96, True, True, 2), *[_Row(5, 576, 96, True, True, 1)] * 2),
)
_V3: Mapping[str, tuple[Sequence[Sequence[_Row]], int]] = {"large": (_LARGE, 1280), "small": (_SMALL, 1024)}
_V3_EXPANSION_OF_FEATURES = 6


def build_v3(
    family: Family,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axes: Mapping[str, int],
    width: float,
    depth: float,
    options: Mapping[str, Any],
) -> nn.Module:
    """Return a MobileNetV3; the layer before the classes is scaled by `width`, unlike MobileNetV2's."""
    size, classes = image_size(family, inputs, axes), class_count(family, outputs)
    stages, hidden = _V3[family.preset["size_name"]]
    later = options["activation"]
    channels = stem = round_channels(16 * width)
    blocks: list[Block] = []
    for stage in stages:
        for index in range(scaled_repeats(len(stage), depth)):
            row = stage[min(index, len(stage) - 1)]
            expanded = round_channels(row.expanded * width)
            squeezed = round_channels(expanded / 4) if row.gated and options["squeeze_excite"] else 0
            activation = later if row.swish else "relu"
            out, stride = round_channels(row.channels * width), row.stride if index == 0 else 1
            blocks.append(Block(channels, expanded, out, row.kernel, stride, activation, squeezed))
            channels = out
    features = options["features"] or channels * _V3_EXPANSION_OF_FEATURES
    layout = Layout(
        stem,
        2,
        later,
        tuple(blocks),
        features,
        later,
        round_channels(hidden * width),
        options["dropout"],
        1e-3,
    )
    module = ImageClassifier(fitted(layout, size, options), size.channels, classes)
    draw_convolutional_weights(module, linear_std=0.01)
    return module

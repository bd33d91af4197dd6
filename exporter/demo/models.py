"""The two demo networks, written the way a user's own factory file would be.

The demo's recipes name this file by path, so it is loaded as any user's code is: it imports torch alone and
knows nothing of the exporter. Both networks read an image batch `[N, 1, 32, 32]` float32 in 0..1 and return
logits `[N, 10]` float32. N stays symbolic under `torch.export`: no Python integer is taken from that axis.

They are small and hard on purpose: between them they hold what makes mobile networks difficult to quantise
(depthwise convolutions, squeeze-excite, hard-swish, residual adds; LayerNorm, softmax, GELU).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE = 32
CLASS_COUNT = 10


class SqueezeExcite(nn.Module):
    """Rescales each channel by a gate in 0..1 made from its mean (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed_channels, kernel_size=1)
        self.excite = nn.Conv2d(squeezed_channels, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Gate `[N, C, H, W]` features; same shape out."""
        # A mean over axes becomes one reduction everywhere; converters disagree on adaptive pooling.
        pooled = features.mean(dim=(2, 3), keepdim=True)
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        return features * gate


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, optional squeeze-excite, project 1×1 (Howard et al. 2019, arXiv:1905.02244).

    The input is added back when the block keeps both resolution and width.
    """

    def __init__(
        self,
        in_channels: int,
        expanded_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        squeeze_excite: bool,
    ) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(in_channels, expanded_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(expanded_channels),
            nn.Hardswish(),
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(
                expanded_channels,
                expanded_channels,
                kernel_size=kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                groups=expanded_channels,
                bias=False,
            ),
            nn.BatchNorm2d(expanded_channels),
            nn.Hardswish(),
        )
        self.gate = (
            SqueezeExcite(expanded_channels, expanded_channels // 4) if squeeze_excite else nn.Identity()
        )
        self.project = nn.Sequential(
            nn.Conv2d(expanded_channels, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Map `[N, C_in, H, W]` to `[N, C_out, H / stride, W / stride]`."""
        projected: Tensor = self.project(self.gate(self.depthwise(self.expand(features))))
        return features + projected if self.has_shortcut else projected


class DigitsCnn(nn.Module):
    """MobileNetV3-style classifier of 32×32 digits: `[N, 1, 32, 32]` to logits `[N, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
        )
        self.blocks = nn.Sequential(
            InvertedResidual(16, 32, 16, kernel_size=3, stride=1, squeeze_excite=False),
            InvertedResidual(16, 64, 24, kernel_size=3, stride=2, squeeze_excite=False),
            InvertedResidual(24, 96, 24, kernel_size=3, stride=1, squeeze_excite=True),
            InvertedResidual(24, 96, 48, kernel_size=5, stride=2, squeeze_excite=True),
            InvertedResidual(48, 144, 48, kernel_size=5, stride=1, squeeze_excite=True),
            InvertedResidual(48, 240, 48, kernel_size=3, stride=1, squeeze_excite=True),
        )
        self.last = nn.Sequential(
            nn.Conv2d(48, 192, kernel_size=1, bias=False),
            nn.BatchNorm2d(192),
            nn.Hardswish(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(192, 160),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(160, CLASS_COUNT),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[N, 10]` for images `[N, 1, 32, 32]` in 0..1."""
        features = self.last(self.blocks(self.stem(image)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention over a token axis (Vaswani et al. 2017, arXiv:1706.03762).

    Query, key and value are three projections, not one fused, so that each gets an int8 range of its own.
    """

    def __init__(self, width: int, head_count: int) -> None:
        super().__init__()
        self.head_count = head_count
        self.head_width = width // head_count
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        # -1 stands for the batch, so the exported shape is a constant, not arithmetic on the input's shape.
        return tokens.reshape(-1, tokens.shape[1], self.head_count, self.head_width).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens `[N, T, width]`; same shape out."""
        query = self._split_heads(self.query(tokens)) * self.head_width**-0.5
        key = self._split_heads(self.key(tokens))
        value = self._split_heads(self.value(tokens))
        mixed = torch.softmax(query @ key.transpose(-2, -1), dim=-1) @ value
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: attention, then a GELU MLP, each added to its input."""

    def __init__(self, width: int, head_count: int, mlp_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, head_count)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Refine tokens `[N, T, width]`; same shape out."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        refined: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return refined


class DigitsVit(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): `[N, 1, 32, 32]` to `[N, 10]`."""

    def __init__(
        self,
        *,
        patch_size: int = 8,
        width: int = 64,
        head_count: int = 4,
        mlp_width: int = 256,
        depth: int = 4,
    ) -> None:
        super().__init__()
        patch_count = (IMAGE_SIZE // patch_size) ** 2
        self.patch_embedding = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, patch_count + 1, width))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, head_count, mlp_width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASS_COUNT)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[N, 10]` for images `[N, 1, 32, 32]` in 0..1."""
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(image.shape[0], -1, -1)
        tokens = torch.cat((class_token, patches), dim=1) + self.position_embedding
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def build_cnn() -> DigitsCnn:
    """Return an untrained `DigitsCnn`; its trained weights are `weights/digits_cnn.safetensors`."""
    return DigitsCnn()


def build_vit() -> DigitsVit:
    """Return an untrained `DigitsVit`; its trained weights are `weights/digits_vit.safetensors`."""
    return DigitsVit()

"""The audio demo's network and its front end, written the way a user's own factory file would be.

It reads the log-mel picture of half a second of sound, `[batch, 20, 40]` float32 (bands, frames), and returns a
logit for each of `WORDS`. Depthwise-separable convolutions over time with squeeze-excite and hard-swish, as in
MobileNetV3 (Howard et al. 2019): the kind of network that naive int8 hurts most.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

WORDS = ("sima", "sina", "shima", "lomu", "lonu", "dabi", "gabi", "badu", "gadu", "nabi")
RATE_HZ = 8000
WINDOW, HOP = 256, 128
BANDS, FRAMES = 20, 40
SAMPLES = WINDOW + (FRAMES - 1) * HOP
LOWEST_HZ, HIGHEST_HZ = 100.0, 3800.0
_FLOOR_DB, _STEP = -60.0, 0.25
_WIDTH, _GATE_WIDTH = 80, 20


def log_mel(sound: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return `[N, 5248]` sound at 8 kHz as `[N, 20, 40]` log-mel: 10 dB to a unit, within ±3, in steps of 1/4.

    The loudest cell of a picture is 3: how loud somebody speaks says nothing of the word.
    """
    brightened = np.diff(sound, axis=-1, prepend=0.0)  # speech falls by 6 dB an octave
    frames = np.lib.stride_tricks.sliding_window_view(brightened, WINDOW, axis=-1)[:, ::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=-1)) ** 2
    decibels = 10 * np.log10(power @ _mel_filters().T + 1e-12)
    decibels -= decibels.max(axis=(1, 2), keepdims=True)
    units = np.maximum(decibels, _FLOOR_DB) / 10 + 3
    picture: NDArray[np.float32] = (np.rint(units / _STEP) * _STEP).astype(np.float32)
    return np.ascontiguousarray(picture.transpose(0, 2, 1))


@cache
def _mel_filters() -> NDArray[np.float64]:
    """Return `[bands, bins]` triangles, evenly spaced on the mel scale (O'Shaughnessy 1987)."""
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, HIGHEST_HZ))
    corners = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    bins = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    return np.maximum(np.minimum(rising, falling), 0.0)


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate that sees their means over time (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv1d(width, _GATE_WIDTH, 1)
        self.excite = nn.Conv1d(_GATE_WIDTH, width, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, signal: Tensor) -> Tensor:
        """Return `signal` `[batch, channels, frames]`, each channel times its gate."""
        means = signal.mean(dim=2, keepdim=True)
        gated: Tensor = signal * self.gate(self.excite(self.relu(self.squeeze(means))))
        return gated


class Separable(nn.Module):
    """Depthwise convolution over time, squeeze-excite, pointwise convolution; residual where the length stays."""

    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            width, width, kernel, stride=stride, padding=kernel // 2, groups=width, bias=False
        )
        self.depthwise_norm = nn.BatchNorm1d(width)
        self.attend = SqueezeExcite(width)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm1d(width)
        self.activation = nn.Hardswish()
        self.is_residual = stride == 1

    def forward(self, signal: Tensor) -> Tensor:
        """Return `[batch, channels, frames / stride]`."""
        inner = self.attend(self.activation(self.depthwise_norm(self.depthwise(signal))))
        inner = self.pointwise_norm(self.pointwise(inner))
        result: Tensor = self.activation(signal + inner if self.is_residual else inner)
        return result


class WordNet(nn.Module):
    """Stem, five separable blocks, mean over time, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(BANDS, _WIDTH, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm1d(_WIDTH)
        self.activation = nn.Hardswish()
        self.blocks = nn.Sequential(
            *(
                Separable(_WIDTH, kernel, stride)
                for kernel, stride in ((5, 1), (5, 2), (5, 1), (5, 2), (5, 1))
            )
        )
        self.head = nn.Linear(_WIDTH, len(WORDS))

    def forward(self, mel: Tensor) -> Tensor:
        """Return logits `[batch, 10]` for `mel` `[batch, 20, 40]`."""
        signal = self.activation(self.stem_norm(self.stem(mel)))
        logits: Tensor = self.head(self.blocks(signal).mean(dim=2))
        return logits


def build() -> nn.Module:
    """Return the untrained network, 58 thousand parameters; its trained weights are `words.safetensors`."""
    return WordNet().eval()

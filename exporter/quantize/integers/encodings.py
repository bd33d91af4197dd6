"""How the numbers of one float graph are to be stored, beyond what a scheme says by itself.

What calibration, training and recovery have settled, by the names of the graph it was settled for: the one noun
that carries accuracy from there to the quantisers. Frozen; a method returns a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from exporter.quantize.integers.weights import Blocks


@dataclass(frozen=True, slots=True)
class ChannelWeight:
    """One weight as symmetric integers: int8 `integers` of the weight's own shape, float32 `scales` along `axis`."""

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int


@dataclass(frozen=True, slots=True)
class Encodings:
    """Decisions by name; a name that is missing is left to the scheme's default.

    `ranges` are activation ranges (low, high) in real units by value name. `channels` (by initializer name) and
    `blocks` (by initializer name, always as the matrix `[N, K]` with a row per output channel) are weights whose
    integers were chosen with more than the weight in view. `bits` are weight widths (4 or 8) by node name, for a mix
    of both. `keep` are glob patterns or names of nodes that stay float.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    channels: Mapping[str, ChannelWeight] = field(default_factory=dict)
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    keep: tuple[str, ...] = ()


PLAIN = Encodings()
"""Nothing is settled: everything as the scheme does it by default."""

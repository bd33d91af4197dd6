"""Statistics × rule → a range for every activation that a static scheme puts on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporter.stages.quantize.regions import activation_values

if TYPE_CHECKING:
    from calibration.statistics import Statistics


def choose_ranges(
    model: ir.Model,
    statistics: Statistics,
    rule: str,
    keep: Sequence[str],
    settled: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> dict[str, tuple[float, float]]:
    """Return (low, high) of every activation that a static scheme needs a range for, by `rule` unless settled."""
    ranges = {}
    for name in activation_values(model, keep):
        if name in settled:
            ranges[name] = settled[name]
            continue
        found = statistics.range_of(name, "mse" if rule == "auto" else rule)
        ranges[name] = (found.low, found.high)
    return ranges

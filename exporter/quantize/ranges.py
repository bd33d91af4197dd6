"""Statistics × rule → a range for every activation that a static scheme puts on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporter.errors import InputError
from exporter.quantize.regions import Regions, decide_regions
from exporter.quantize.shared import residual_pairs, shared_groups

if TYPE_CHECKING:
    from calibration.ranges import Range
    from calibration.statistics import Statistics

SHARING_COST = 0.05
"""How much more squared error the operands of an addition may have on one grid than on their own: 0.2 dB."""


def choose_ranges(
    model: ir.Model,
    statistics: Statistics,
    rule: str,
    keep: Sequence[str],
    settled: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> dict[str, tuple[float, float]]:
    """Return (low, high) of every activation that a static scheme needs a range for, by `rule` unless settled.

    Under "auto" what a Concat joins has one range, and so have the operands of an addition where each loses at most
    `SHARING_COST` by it; a group of which any range is settled is left alone. Raises `InputError` for a rule that
    does not exist, `CalibrationError` for an activation that was empty in every sample, each by name.
    """
    from calibration.ranges import Rule

    if rule not in set(Rule):
        raise InputError(f"no range rule is called {rule!r}", fix=f"use {', '.join(Rule)}")
    regions = decide_regions(model, tuple(keep))
    names = [name for name in regions.grids if name not in regions.same_grid]
    chosen = {name: statistics.range_of(name, rule) for name in names if name not in settled}
    if rule == Rule.AUTO:
        chosen |= _shared(model, regions, statistics, chosen)
    return {
        name: settled[name] if name in settled else (chosen[name].low, chosen[name].high) for name in names
    }


def _shared(
    model: ir.Model, regions: Regions, statistics: Statistics, own: Mapping[str, Range]
) -> dict[str, Range]:
    """Return the common ranges, of the names that take one."""
    from calibration.ranges import common_range, expected_squared_error

    common: dict[str, Range] = {}
    for group in shared_groups(model, regions):
        if all(name in own for name in group):
            common |= dict.fromkeys(group, common_range([statistics.sketches[name] for name in group]))
    for pair in residual_pairs(model, regions):
        if any(name in common or name not in own for name in pair):
            continue
        sketches = [statistics.sketches[name] for name in pair]
        clip = common_range(sketches)
        if all(
            expected_squared_error(sketch, clip)
            <= (1.0 + SHARING_COST) * expected_squared_error(sketch, own[name])
            for name, sketch in zip(pair, sketches, strict=True)
        ):
            common |= dict.fromkeys(pair, clip)
    return common

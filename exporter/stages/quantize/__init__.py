"""Model × Statistics × scheme → quantised ONNX graph, with the coverage that says what that touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnx_ir.passes.common as passes

from exporter.artifacts import Coverage
from exporter.errors import CalibrationError, RecipeError, UnsupportedError
from exporter.graph import matches
from exporter.integers.outcome import Outcome
from exporter.schemes import Method, Scheme
from exporter.stages.quantize.coverage import coverage_of

if TYPE_CHECKING:
    from calibration.collect import Statistics


def quantize(
    model: ir.Model,
    scheme: Scheme,
    *,
    statistics: Statistics | None,
    rule: str,
    keep: Sequence[str],
    axes: Mapping[str, int],
    settled: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> tuple[ir.Model, Coverage]:
    """Return `model` under `scheme` and its coverage; the given graph is not changed.

    Static schemes take activation ranges from `settled` (by value name: what training has fixed) where it has
    one, else from `statistics` by `rule`. Raises `RecipeError` for a `keep`
    pattern that matches nothing, `UnsupportedError` (12) with the coverage when nothing was quantised,
    `CalibrationError` when a static scheme has no statistics.
    """
    _check_keep(model, keep)
    if scheme.is_float:
        if scheme.weight_bits != 32:
            raise UnsupportedError(
                f"onnx:{scheme} is emulated or slow on most CPU builds of onnxruntime",
                fix="use onnx:float32, or tflite:float16 and mlpackage:float16 for GPUs and neural engines",
            )
        return model, coverage_of(model, None, axes, weights_only=False)
    outcome = _outcome(model, scheme, statistics, rule, keep, settled)
    coverage = coverage_of(model, outcome, axes, weights_only=scheme.method is Method.WEIGHT_ONLY)
    if not coverage.quantized_count:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in list(coverage.reasons().items())[:5])
        raise UnsupportedError(
            f"{scheme} quantised none of {len(coverage.layers)} operators: {reasons}",
            fix="choose another scheme, or float32",
            details={"left_float": coverage.reasons()},
        )
    passes.RemoveUnusedNodesPass()(outcome.model)
    return outcome.model, coverage


def _outcome(
    model: ir.Model,
    scheme: Scheme,
    statistics: Statistics | None,
    rule: str,
    keep: Sequence[str],
    settled: Mapping[str, tuple[float, float]],
) -> Outcome:
    if scheme.method is Method.STATIC:
        from exporter.stages.quantize.regions import activation_values
        from exporter.stages.quantize.static import quantize_static

        if statistics is None:
            raise CalibrationError(
                f"{scheme} needs calibration data", fix="add [data] calibration to the recipe"
            )
        ranges = {}
        for name in activation_values(model, keep):
            if name in settled:
                ranges[name] = settled[name]
                continue
            found = statistics.range_of(name, rule)
            ranges[name] = (found.low, found.high)
        return quantize_static(model, ranges, unsigned=scheme.unsigned_activations, keep=keep)
    if scheme.method is Method.DYNAMIC:
        from exporter.stages.quantize.dynamic import quantize_dynamic

        return quantize_dynamic(model, keep)
    from exporter.stages.quantize.weight_only import quantize_weight_only

    return quantize_weight_only(model, scheme.weight_bits, scheme.block_size, keep)


def _check_keep(model: ir.Model, keep: Sequence[str]) -> None:
    names = [node.name or "" for node in model.graph]
    for pattern in keep:
        if not any(matches(name, (pattern,)) for name in names):
            import difflib

            near = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise RecipeError(
                f"quantize.keep: {pattern!r} matches no operator", fix=f"names look like {', '.join(near)}"
            )

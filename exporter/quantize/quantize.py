"""Model × Encodings × scheme → quantised ONNX graph, with the coverage that says what that touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from exporter.artifacts import Coverage
from exporter.errors import RecipeError, UnsupportedError
from exporter.model.graph import matches
from exporter.quantize.coverage import coverage_of
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.integers.outcome import Outcome
from exporter.schemes import Method, Scheme


def quantize(
    model: ir.Model, scheme: Scheme, *, encodings: Encodings, axes: Mapping[str, int]
) -> tuple[ir.Model, Coverage]:
    """Return `model` under `scheme` as `encodings` say, and its coverage; the given graph is not changed.

    Raises `RecipeError` for a `keep` pattern that matches nothing, `UnsupportedError` (12) with the coverage when
    nothing was quantised, `CalibrationError` when a static scheme lacks the range of an activation.
    """
    check_keep(model, encodings.keep)
    if scheme.is_float:
        if scheme.weight_bits != 32:
            raise UnsupportedError(
                f"onnx:{scheme} is emulated or slow on most CPU builds of onnxruntime",
                fix="use onnx:float32, or tflite:float16 and mlpackage:float16 for GPUs and neural engines",
            )
        return model, coverage_of(model, None, axes, weights_only=False)
    outcome = _outcome(model, scheme, encodings)
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


def _outcome(model: ir.Model, scheme: Scheme, encodings: Encodings) -> Outcome:
    if scheme.method is Method.STATIC:
        from exporter.quantize.static import quantize_static

        return quantize_static(model, encodings, unsigned=scheme.unsigned_activations)
    if scheme.method is Method.DYNAMIC:
        from exporter.quantize.dynamic import quantize_dynamic

        return quantize_dynamic(model, encodings)
    from exporter.quantize.weight_only import quantize_weight_only

    return quantize_weight_only(model, scheme.weight_bits, scheme.block_size, encodings)


def check_keep(model: ir.Model, keep: Sequence[str]) -> None:
    """Raise `RecipeError` naming the first pattern of `keep` that no operator of `model` answers to."""
    names = [node.name or "" for node in model.graph]
    for pattern in keep:
        if not any(matches(name, (pattern,)) for name in names):
            import difflib

            near = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise RecipeError(
                f"quantize.keep: {pattern!r} matches no operator", fix=f"names look like {', '.join(near)}"
            )

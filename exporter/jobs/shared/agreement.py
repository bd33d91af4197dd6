"""Will the device agree with this host? What is examined of every artifact beside running it, and the gates on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from exporter.artifacts import Artifact, ArtifactSpec, Evidence, Format, GateResult, to_plain
from exporter.runtimes.optimized import fused_kernels
from exporter.stages.numerics import Finding, examine, float16_overflow, numeric_gates

Ranges = Mapping[str, tuple[float, float]]


def examined(
    artifacts: Mapping[ArtifactSpec, Artifact],
    evidence: Mapping[ArtifactSpec, Evidence],
    float_onnx: Path,
    seen: Ranges,
) -> tuple[dict[ArtifactSpec, Artifact], dict[ArtifactSpec, Evidence], list[GateResult]]:
    """Return `artifacts` with a note where hosts may differ, `evidence` with what was examined, and its gates.

    Integer `.onnx` files: sums that may saturate or overflow, scales, biases, and the integer kernels that onnxruntime
    makes of them. float16 files: weights of the float graph `float_onnx`, and activations where calibration has `seen`
    their extremes, beyond float16.
    """
    noted, found = dict(artifacts), dict(evidence)
    gates: list[GateResult] = []
    overflow: Sequence[Finding] | None = None
    for spec, held in evidence.items():
        if spec.format is Format.ONNX and not spec.scheme.is_float:
            agreement = examine(ir.load(artifacts[spec].path), spec.scheme)
            plain = {key: value for key, value in to_plain(agreement).items() if key != "products"}
            extra = {"numerics": plain, "kernels": fused_kernels(artifacts[spec].path)}
            found[spec] = dataclasses.replace(held, structure={**held.structure, **extra})
            gates += numeric_gates(spec, agreement)
            if agreement.pair_sums.rows_at_risk:
                notes = (*noted[spec].notes, *agreement.findings)
                noted[spec] = dataclasses.replace(noted[spec], notes=notes)
        elif spec.scheme.is_float and spec.scheme.weight_bits == 16:
            if overflow is None:
                overflow = float16_overflow(ir.load(float_onnx), seen)
            gates.append(
                GateResult(spec, "float16 range", 0.0, float(len(overflow)), not overflow, _beyond(overflow))
            )
    return noted, found, gates


def _beyond(overflow: Sequence[Finding]) -> str:
    if not overflow:
        return "tensors"
    return f"tensors beyond ±65504, first of all {overflow[0].tensor} = {overflow[0].value}"

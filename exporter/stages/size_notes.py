"""Say why a file is larger than one that stores its weights in more bits; silence there would be a lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from exporter.artifacts import Artifact, ArtifactSpec


def explain_sizes(
    artifacts: Mapping[ArtifactSpec, Artifact], float_bytes: int
) -> dict[ArtifactSpec, Artifact]:
    """Return `artifacts`, those that are larger than they should be with a note that says why.

    An artifact is compared with every sibling of its format that stores weights in more bits, and with the
    float32 graph of `float_bytes`.
    """
    explained = {}
    for spec, artifact in artifacts.items():
        rivals = [
            (f"{other.spec}", other.size_bytes)
            for other in artifacts.values()
            if other.spec.format is spec.format and other.spec.scheme.weight_bits > spec.scheme.weight_bits
        ]
        if spec.scheme.weight_bits < 32:
            rivals.append(("the float32 graph", float_bytes))
        smaller = [(name, size) for name, size in rivals if size <= artifact.size_bytes]
        notes = artifact.notes
        if smaller:
            name, size = min(smaller, key=lambda rival: rival[1])
            notes = (
                *notes,
                f"larger than {name} ({artifact.size_bytes} against {size} bytes): {_why(artifact)}",
            )
        explained[spec] = dataclasses.replace(artifact, notes=notes)
    return explained


def _why(artifact: Artifact) -> str:
    coverage = artifact.coverage
    if coverage.weight_share < 0.9 and coverage.layers:
        heaviest = max(
            (layer for layer in coverage.layers if not layer.quantized), key=lambda layer: layer.weight_bytes
        )
        return (
            f"{100 * (1 - coverage.weight_share):.0f} % of its weight bytes are not in {artifact.spec.scheme}, "
            f"first of all {heaviest.name} ({heaviest.reason})"
        )
    return "scales, operators and names outweigh what so few weights save"

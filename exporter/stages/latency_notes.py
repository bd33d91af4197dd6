"""Say why a file of fewer bits is slower than its sibling of more; silence there would be a lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from exporter.artifacts import Artifact, ArtifactSpec, Evidence, Format
from exporter.schemes import Method, Scheme

_TOLERANCE = 1.05
"""Medians of two runs of one file differ by this much."""


def explain_latencies(
    artifacts: Mapping[ArtifactSpec, Artifact], evidence: Mapping[ArtifactSpec, Evidence]
) -> dict[ArtifactSpec, Artifact]:
    """Return `artifacts`, int4 ones that are slower than the fastest int8 sibling of their format with the reason.

    Latencies are the host's medians in `evidence`; what was not timed is not judged.
    """
    explained = {}
    for spec, artifact in artifacts.items():
        note = _note(spec, evidence) if spec.scheme.weight_bits == 4 else ""
        notes = (*artifact.notes, note) if note else artifact.notes
        explained[spec] = dataclasses.replace(artifact, notes=notes)
    return explained


def _note(spec: ArtifactSpec, evidence: Mapping[ArtifactSpec, Evidence]) -> str:
    own = _median(evidence.get(spec))
    rivals = [
        (median, other)
        for other, found in evidence.items()
        if other.format is spec.format and other.scheme.weight_bits == 8
        for median in [_median(found)]
        if median is not None
    ]
    if own is None or not rivals:
        return ""
    fastest, rival = min(rivals)
    if own <= _TOLERANCE * fastest:
        return ""
    return (
        f"slower on this host than {rival} ({own:.2f} against {fastest:.2f} ms): {_why(spec, rival.scheme)}"
    )


def _median(evidence: Evidence | None) -> float | None:
    return evidence.latency.p50_ms if evidence is not None and evidence.latency is not None else None


def _why(spec: ArtifactSpec, rival: Scheme) -> str:
    if spec.format is Format.TFLITE:
        return "XNNPACK adds up blocks in float, and convolutions have no int4 kernel"
    if rival.method is Method.STATIC:
        cause = "its activations are integers throughout, which int4 storage does not give"
    elif rival.method is Method.DYNAMIC:
        cause = "it adds up whole rows in integers, where int4 adds up block after block in float"
    else:
        cause = "it has larger blocks, and blocks are added up in float one after another"
    # Measured on GPT-2 (x86-64 with VNNI, one thread): 5.6 against 7.4 and 10.5 ms at one token, 210 against 183 at 128.
    return f"{cause}; int4 is the faster one where few rows meet each weight, as in generating token by token"

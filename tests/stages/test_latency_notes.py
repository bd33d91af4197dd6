"""int4 that is slower than int8 says why; int4 that is not says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, Latency
from exporter.stages.latency_notes import explain_latencies


def explained(times: dict[str, float | None]) -> dict[str, tuple[str, ...]]:
    """Return the notes of each artifact that took so many milliseconds (`None`: not timed)."""
    specs = {name: ArtifactSpec.parse(name) for name in times}
    artifacts = {
        spec: Artifact(spec, Path(name), 1, "0" * 64, (), (), Coverage(()), notes=("first",))
        for name, spec in specs.items()
    }
    evidence = {
        specs[name]: Evidence(specs[name], latency=None if ms is None else Latency(ms, ms, 9, 1, "host"))
        for name, ms in times.items()
    }
    found = explain_latencies(artifacts, evidence)
    return {name: found[spec].notes for name, spec in specs.items()}


@pytest.mark.parametrize(
    ("rival", "reason"),
    [
        ("onnx:static_wi8_ai8", "integers throughout"),
        ("onnx:dynamic_wi8_ai8", "whole rows in integers"),
        ("onnx:weight_only_wi8", "larger blocks"),
    ],
)
def test_the_fastest_int8_sibling_is_named_with_the_reason(rival: str, reason: str) -> None:
    notes = explained({"onnx:weight_only_wi4_b128": 2.0, rival: 1.0, "onnx:float32": 5.0})
    first, note = notes["onnx:weight_only_wi4_b128"]
    assert first == "first"
    assert note.startswith(f"slower on this host than {rival} (2.00 against 1.00 ms): ")
    assert reason in note
    assert notes[rival] == ("first",)


@pytest.mark.parametrize(
    "times",
    [
        {"onnx:weight_only_wi4_b32": 1.0, "onnx:weight_only_wi8": 1.1},
        {
            "onnx:weight_only_wi4_b32": 1.03,
            "onnx:weight_only_wi8": 1.0,
        },  # two runs of one file differ as much
        {"onnx:weight_only_wi4_b32": 2.0, "tflite:weight_only_wi8": 1.0},
        {"onnx:weight_only_wi4_b32": None, "onnx:weight_only_wi8": 1.0},
        {"onnx:weight_only_wi4_b32": 2.0, "onnx:weight_only_wi8": None},
        {"onnx:weight_only_wi8": 2.0, "onnx:static_wi8_ai8": 1.0},
    ],
)
def test_nothing_is_said_without_a_slower_int4(times: dict[str, float | None]) -> None:
    assert all(notes == ("first",) for notes in explained(times).values())

"""A file that is larger than one with more bits says why."""

from __future__ import annotations

from pathlib import Path

from exporter.artifacts import Artifact, ArtifactSpec, Coverage, LayerCoverage
from exporter.stages.size_notes import explain_sizes


def artifact(text: str, size: int, *layers: LayerCoverage) -> Artifact:
    return Artifact(ArtifactSpec.parse(text), Path(f"{text}.bin"), size, "0" * 64, (), (), Coverage(layers))


def explained(*artifacts: Artifact, float_bytes: int = 1000) -> dict[str, tuple[str, ...]]:
    found = explain_sizes({item.spec: item for item in artifacts}, float_bytes)
    return {str(spec): item.notes for spec, item in found.items()}


def test_an_int4_file_larger_than_its_int8_sibling_names_what_stayed_large() -> None:
    conv = LayerCoverage(
        "stem", "Conv", False, 10, 900, "onnxruntime has no int4 convolution; stored as int8"
    )
    head = LayerCoverage("head", "Gemm", True, 1, 100)
    notes = explained(
        artifact("onnx:weight_only_wi4_b32", 400, conv, head), artifact("onnx:weight_only_wi8", 390)
    )
    assert notes["onnx:weight_only_wi4_b32"] == (
        "larger than onnx:weight_only_wi8 (400 against 390 bytes): 90 % of its weight bytes are not in "
        "weight_only_wi4_b32, first of all stem (onnxruntime has no int4 convolution; stored as int8)",
    )
    assert notes["onnx:weight_only_wi8"] == ()


def test_formats_are_not_compared_with_each_other() -> None:
    assert not any(
        explained(artifact("onnx:weight_only_wi4_b32", 400), artifact("tflite:float16", 300)).values()
    )


def test_a_file_larger_than_the_float_graph_says_so() -> None:
    (note,) = explained(artifact("onnx:dynamic_wi8_ai8", 1200, LayerCoverage("head", "Gemm", True, 1, 100)))[
        "onnx:dynamic_wi8_ai8"
    ]
    assert note.startswith("larger than the float32 graph (1200 against 1000 bytes)")

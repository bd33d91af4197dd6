"""The language of schemes and artifacts: what is printed is what is parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.artifacts import ArtifactSpec, Format, Shapes, TensorSpec, to_plain
from exporter.errors import UsageError
from exporter.schemes import KNOWN_SCHEMES, Method, Scheme

schemes = st.sampled_from(KNOWN_SCHEMES).map(Scheme.parse)
specs = st.builds(
    lambda kind, scheme, shapes: ArtifactSpec(kind, scheme, Shapes.FIXED if kind.needs_torch else shapes),
    st.sampled_from(Format),
    schemes,
    st.sampled_from(Shapes),
)


@pytest.mark.parametrize("text", KNOWN_SCHEMES)
def test_every_scheme_is_printed_as_it_is_spelled(text: str) -> None:
    assert str(Scheme.parse(text)) == text


@given(specs)
def test_specs_survive_being_written_and_read(spec: ArtifactSpec) -> None:
    assert ArtifactSpec.parse(str(spec)) == spec
    assert to_plain(spec) == str(spec)


@given(specs, specs)
def test_different_specs_have_different_files(first: ArtifactSpec, second: ArtifactSpec) -> None:
    assert (first == second) == (first.file_name("m") == second.file_name("m"))


@given(st.text(max_size=40))
def test_any_other_text_is_a_usage_error_and_never_a_scheme(text: str) -> None:
    if text in KNOWN_SCHEMES:
        return
    with pytest.raises(UsageError) as caught:
        Scheme.parse(text)
    assert caught.value.fix.startswith("use one of ")


@pytest.mark.parametrize(
    "text",
    ["", "onnx", "onnx:", ":float32", "onxx:float32", "onnx:int8", "onnx:float32@", "onnx:float32@big",
     "tflite:float16@dynamic", "onnx:float32@fixed@fixed", " onnx:float32", "ONNX:float32"],
)  # fmt: skip
def test_misspelled_specs_are_refused(text: str) -> None:
    if text == "onnx:float32@":  # an empty suffix says nothing
        assert ArtifactSpec.parse(text) == ArtifactSpec.parse("onnx:float32")
        return
    with pytest.raises(UsageError):
        ArtifactSpec.parse(text)


def test_near_names_are_offered() -> None:
    with pytest.raises(UsageError, match="static_wi8_ai8"):
        Scheme.parse("static_w8_a8")


def test_only_static_schemes_need_calibration() -> None:
    for scheme in map(Scheme.parse, KNOWN_SCHEMES):
        assert scheme.needs_calibration == (scheme.method is Method.STATIC)
        assert scheme.is_float == (scheme.weight_bits >= 16)


@given(st.lists(st.one_of(st.integers(1, 64), st.sampled_from(["batch", "time"])), max_size=5))
def test_fixing_a_shape_leaves_only_numbers(shape: list[int | str]) -> None:
    fixed = TensorSpec("x", "float32", tuple(shape)).fixed({"batch": 2, "time": 7})
    assert len(fixed.shape) == len(shape)
    assert fixed.fixed({}) == fixed

"""Generated Swift: complete and not to be broken by names. Debian has no Swift compiler to build it with."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from calibration.preprocess import Preprocess
from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, TensorSpec
from exporter.errors import UnsupportedError
from targets import swift
from targets.base import BundleRequest, Delivery, ModelCard, TargetOptions
from targets.ios import CAPABILITIES_18

NASTY = 'a"b\\(c)\n\u00e9'


def request_for(
    *artifacts: tuple[str, tuple[tuple[str, str, tuple[int | str, ...]], ...]],
    name: str = "digits",
    preprocess: dict[str, Any] | None = None,
) -> BundleRequest:
    deliveries = []
    for text, tensors in artifacts:
        spec = ArtifactSpec.parse(text)
        specs = tuple(TensorSpec(*tensor) for tensor in tensors)
        path = Path("models") / spec.file_name(name)
        artifact = Artifact(spec, path, 1, "0" * 64, specs, specs, Coverage(()))
        deliveries.append(Delivery(artifact, Evidence(spec), CAPABILITIES_18.runtimes_for(spec)))
    card = ModelCard(name, "1.0.0", (), preprocess or {})
    return BundleRequest(card, tuple(deliveries), TargetOptions(), Path("unused"))


IMAGE = (("image", "float32", (1, 3)),)
TOKENS = (("ids", "int64", ("batch", "length")), ("mask", "int64", ("batch", "length")))


def request() -> BundleRequest:
    return request_for(
        ("mlpackage:float16", IMAGE),
        ("onnx:float32@fixed", IMAGE),
        ("onnx:static_wi8_ai8", TOKENS),
        preprocess=Preprocess(size=(9, 7)).to_dict(),
    )


def test_leaves_no_placeholder_and_closes_every_bracket() -> None:
    for path, text in swift.sources(request(), minimum="17").items():
        assert "%%" not in text, path
        bare = re.sub(r'"(\\.|[^"\\])*"|//[^\n]*', "", text)
        for opening, closing in ("()", "[]", "{}"):
            assert bare.count(opening) == bare.count(closing), (path, opening)


def test_names_types_after_model_scheme_and_runtime() -> None:
    assert sorted(swift.sources(request(), minimum="17")) == [
        "integration/Package.swift",
        "integration/swift/DigitsFloat16CoreML.swift",
        "integration/swift/DigitsFloat32FixedOnnx.swift",
        "integration/swift/DigitsPreprocessing.swift",
        "integration/swift/DigitsStaticWi8Ai8Onnx.swift",
    ]


def test_fills_in_names_shapes_and_axes() -> None:
    sources = swift.sources(request(), minimum="17")

    tokens = sources["integration/swift/DigitsStaticWi8Ai8Onnx.swift"]
    assert "run(ids: [Int64], mask: [Int64], batch: Int, length: Int) throws -> Outputs" in tokens
    assert "[NSNumber(value: batch), NSNumber(value: length)], .int64)" in tokens
    core_ml = sources["integration/swift/DigitsFloat16CoreML.swift"]
    assert '"image": try Self.tensor(image, [1, 3], .float32)' in core_ml
    assert 'static let resource = "digits-float16"' in core_ml


def test_only_float_files_of_fixed_shape_go_to_the_core_ml_provider() -> None:
    sources = swift.sources(request(), minimum="17")

    assert "createMLProgram = true" in sources["integration/swift/DigitsFloat32FixedOnnx.swift"]
    assert "CoreML" not in sources["integration/swift/DigitsStaticWi8Ai8Onnx.swift"]


def test_user_text_cannot_leave_its_literal() -> None:
    source = request_for(
        ("onnx:float32@fixed", ((NASTY, "float32", (1, 3)), ("self", "int32", (1,)))), name="3d.net"
    )
    text = swift.sources(source, minimum="17")["integration/swift/Model3dNetFloat32FixedOnnx.swift"]

    assert r'"a\"b\\(c)\u{A}\u{E9}": try Self.tensor(aBC, [1, 3], .float)' in text
    assert "run(aBC: [Float], selfValue: [Int32])" in text


@pytest.mark.parametrize(("minimum", "platform"), [("17", '.iOS("17.0")'), ("17.4", '.iOS("17.4")')])
def test_package_names_the_minimum_and_only_the_dependencies_it_needs(minimum: str, platform: str) -> None:
    both = swift.sources(request(), minimum=minimum)[swift.MANIFEST]
    alone = swift.sources(request_for(("mlpackage:float16", IMAGE)), minimum=minimum)[swift.MANIFEST]

    assert platform in both
    assert "onnxruntime-swift-package-manager" in both
    assert '.copy("models/digits-float16.mlpackage")' in both
    assert "onnxruntime" not in alone


@pytest.mark.parametrize(
    ("artifact", "dtype"),
    [("mlpackage:float16", "int64"), ("onnx:float32@fixed", "bool"), ("ort:float32", "uint64")],
)
def test_refuses_a_dtype_that_the_runtime_does_not_take(artifact: str, dtype: str) -> None:
    with pytest.raises(UnsupportedError, match=f"tensor 'x' is {dtype}"):
        swift.sources(request_for((artifact, (("x", dtype, (1, 3)),))), minimum="17")


def test_says_when_no_preprocessing_is_generated() -> None:
    source = request_for(
        ("mlpackage:float16", IMAGE), preprocess=Preprocess(size=(8, 8), dtype="float16").to_dict()
    )
    sources = swift.sources(source, minimum="17")

    assert not any("Preprocessing" in path for path in sources)
    assert "No Swift is generated for float16" in swift.usage(source, tuple(sources))


def test_preprocessing_holds_the_contract_as_constants() -> None:
    contract = Preprocess(size=(9, 7), fit="crop", color="BGR", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    source = dataclasses.replace(request(), card=ModelCard("digits", "1.0.0", (), contract.to_dict()))
    text = swift.sources(source, minimum="17")["integration/swift/DigitsPreprocessing.swift"]

    for line in (
        "public static let width = 7",
        "public static let height = 9",
        'private static let color = "BGR"',
        'private static let fitting = "crop"',
        "private static let mean: [Double] = [0.1, 0.2, 0.3]",
        "private static let std: [Double] = [1.0, 2.0, 4.0]",
        f"private static let scale: Double = {1 / 255!r}",
    ):
        assert line in text

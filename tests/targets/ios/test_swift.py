"""Generated Swift: complete, not to be broken by names, and compiled and run where a compiler is installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from swift_ground import needs_swift, run_swift, syntax_errors

from calibration.preprocess import Preprocess
from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, TensorSpec
from exporter.bundle.mistakes import name_mistake
from exporter.errors import UnsupportedError
from targets import naming
from targets.base import BundleRequest, Delivery, ModelCard, TargetOptions
from targets.ios import swift
from targets.ios.target import CAPABILITIES_18

NASTY = 'a"b\\(c)\n\u00e9'

Tensors = tuple[tuple[str, str, tuple[int | str, ...]], ...]


def request_for(
    *artifacts: tuple[str, Tensors] | tuple[str, Tensors, Tensors],
    name: str = "digits",
    labels: tuple[str, ...] = (),
    preprocess: dict[str, Any] | None = None,
) -> BundleRequest:
    """Return a request for `artifacts`: spelling, inputs, and outputs where they are not the same."""
    deliveries = []
    for text, *sides in artifacts:
        spec = ArtifactSpec.parse(text)
        inputs, outputs = (tuple(TensorSpec(*tensor) for tensor in side) for side in (sides[0], sides[-1]))
        path = Path("models") / spec.file_name(name)
        artifact = Artifact(spec, path, 1, "0" * 64, inputs, outputs, Coverage(()))
        deliveries.append(Delivery(artifact, Evidence(spec), CAPABILITIES_18.runtimes_for(spec)))
    card = ModelCard(name, "1.0.0", labels, preprocess or {})
    return BundleRequest(card, tuple(deliveries), TargetOptions(), Path("unused"))


IMAGE: Tensors = (("image", "float32", (1, 3)),)
TOKENS: Tensors = (("ids", "int64", ("batch", "length")), ("mask", "int64", ("batch", "length")))
PICTURE: Tensors = (("image", "float32", (1, 3, 9, 7)),)
SCORES: Tensors = (("logits", "float32", (1, 2)),)


def request() -> BundleRequest:
    return request_for(
        ("mlpackage:float16", PICTURE, SCORES),
        ("onnx:float32@fixed", IMAGE),
        ("onnx:static_wi8_ai8", TOKENS),
        labels=("cat", 'a "quoted" \\dog'),
        preprocess=Preprocess(size=(9, 7)).to_dict(),
    )


def nasty_request() -> BundleRequest:
    return request_for(
        ("onnx:float32@fixed", ((NASTY, "float32", (1, 3)), ("self", "int32", (1,)))),
        ("ort:dynamic_wi8_ai8", (("golden", "uint8", ("sample", 3)), ("model", "int64", ("answers",)))),
        name="3d.net",
        labels=(NASTY,),
    )


@pytest.mark.parametrize("source", [request(), nasty_request()], ids=["digits", "nasty"])
def test_every_file_is_filled_in_and_parses(source: BundleRequest) -> None:
    for path, text in swift.sources(source).items():
        assert "%%" not in text and "<%" not in text, path
        assert syntax_errors(text) == [], path


def test_names_types_after_model_scheme_and_runtime() -> None:
    assert sorted(swift.sources(request())) == [
        "integration/swift/DigitsContract.swift",
        "integration/swift/DigitsFloat16CoreML.swift",
        "integration/swift/DigitsFloat32FixedOnnx.swift",
        "integration/swift/DigitsMistakes.swift",
        "integration/swift/DigitsPreprocessing.swift",
        "integration/swift/DigitsStaticWi8Ai8Onnx.swift",
        "integration/swift/golden/DigitsCoreMLGoldenTests.swift",
        "integration/swift/golden/DigitsGolden.swift",
        "integration/swift/golden/DigitsOnnxGoldenTests.swift",
    ]


def test_fills_in_names_shapes_and_axes() -> None:
    sources = swift.sources(request())

    tokens = sources["integration/swift/DigitsStaticWi8Ai8Onnx.swift"]
    assert "run(ids: [Int64], mask: [Int64], batch: Int, length: Int) throws -> Outputs" in tokens
    assert "[NSNumber(value: batch), NSNumber(value: length)], .int64)" in tokens
    core_ml = sources["integration/swift/DigitsFloat16CoreML.swift"]
    assert '"image": try Self.tensor("image", image, [1, 3, 9, 7], .float32)' in core_ml
    assert 'static let resource = "digits-float16"' in core_ml


def test_only_float_files_of_fixed_shape_go_to_the_core_ml_provider() -> None:
    sources = swift.sources(request())

    assert "createMLProgram = true" in sources["integration/swift/DigitsFloat32FixedOnnx.swift"]
    assert "CoreML" not in sources["integration/swift/DigitsStaticWi8Ai8Onnx.swift"]


def test_user_text_cannot_leave_its_literal() -> None:
    sources = swift.sources(nasty_request())
    text = sources["integration/swift/Model3dNetFloat32FixedOnnx.swift"]

    assert r'"a\"b\\(c)\u{A}\u{E9}": try Self.tensor("a\"b\\(c)\u{A}\u{E9}", aBC, [1, 3], .float)' in text
    assert "run(aBC: [Float], selfValue: [Int32])" in text
    assert r'        "a\"b\\(c)\u{A}\u{E9}"' in sources["integration/swift/Model3dNetContract.swift"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "labels", "is_classifier"),
    [
        (PICTURE, SCORES, ("cat", "dog"), True),
        (PICTURE, SCORES, (), True),
        ((("x", "float32", ("batch", 3, 9, 7)),), (("y", "float32", ("batch", 2)),), ("cat", "dog"), True),
        (PICTURE, (("y", "float32", (1, 2, 1, 1)),), ("cat", "dog"), True),
        (PICTURE, (("y", "float32", (1, 2, 5, 5)),), (), False),
        (PICTURE, SCORES, ("cat", "dog", "bird"), False),
        (PICTURE, (("y", "int64", (1, 2)),), ("cat", "dog"), False),
        (PICTURE, SCORES * 2, ("cat", "dog"), False),
        (PICTURE * 2, SCORES, ("cat", "dog"), False),
        ((("x", "float32", (2, 3, 9, 7)),), SCORES, ("cat", "dog"), False),
        ((("x", "float32", (1, 9, 7, 3)),), SCORES, ("cat", "dog"), False),
        ((("x", "float32", (1, 3, "height", "width")),), SCORES, ("cat", "dog"), False),
    ],
)
def test_classifies_only_where_a_picture_goes_in_and_class_scores_come_out(
    inputs: Tensors, outputs: Tensors, labels: tuple[str, ...], is_classifier: bool
) -> None:
    source = request_for(
        ("onnx:float32", inputs, outputs), labels=labels, preprocess=Preprocess(size=(9, 7)).to_dict()
    )
    text = swift.sources(source)["integration/swift/DigitsFloat32Onnx.swift"]

    assert ("func classify(" in text) is is_classifier


@pytest.mark.parametrize(
    ("artifact", "dtype"),
    [("mlpackage:float16", "int64"), ("onnx:float32@fixed", "bool"), ("ort:float32", "uint64")],
)
def test_refuses_a_dtype_that_the_runtime_does_not_take(artifact: str, dtype: str) -> None:
    with pytest.raises(UnsupportedError, match=f"tensor 'x' is {dtype}"):
        swift.sources(request_for((artifact, (("x", dtype, (1, 3)),))))


def test_says_when_no_preprocessing_is_generated() -> None:
    source = request_for(
        ("mlpackage:float16", IMAGE), preprocess=Preprocess(size=(8, 8), dtype="float16").to_dict()
    )
    sources = swift.sources(source)

    assert not any("Preprocessing" in path or "Mistakes" in path for path in sources)
    assert "No Swift is generated for float16" in swift.usage(source)


def test_usage_gives_the_package_first_and_copying_second() -> None:
    text = swift.usage(request())

    lines = [
        '.package(url: "REGISTRY/swift/digits-coreml.git", exact: "1.0.0"),',
        '.package(url: "REGISTRY/swift/digits-onnxruntime.git", exact: "1.0.0"),',
        "| `digits-float16.mlpackage` | `digits-coreml` | `DigitsFloat16CoreML` |",
        "| `digits-static_wi8_ai8.onnx` | `digits-onnxruntime` | `DigitsStaticWi8Ai8Onnx` |",
        "Without a registry, copy",
    ]
    assert [line for line in lines if line not in text] == []
    assert sorted(text.index(line) for line in lines) == [text.index(line) for line in lines]


def test_preprocessing_holds_the_contract_as_constants() -> None:
    contract = Preprocess(size=(9, 7), fit="crop", color="BGR", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    source = dataclasses.replace(request(), card=ModelCard("digits", "1.0.0", (), contract.to_dict()))
    text = swift.sources(source)["integration/swift/DigitsPreprocessing.swift"]

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


# --- with a compiler -------------------------------------------------------------------------------------

CONTRACTS = {
    "stretch": Preprocess(size=(9, 7), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
    "crop": Preprocess(size=(9, 7), fit="crop", resize="bicubic", layout="NHWC"),
    "letterbox": Preprocess(size=(12, 31), fit="letterbox", pad=114, color="BGR", resize="bicubic"),
    "nearest": Preprocess(size=(13, 40), resize="nearest", dtype="uint8", scale=1.0),
    "grey": Preprocess(size=(6, 6), color="L", mean=(0.1,), std=(0.9,), fit="crop"),
    "signed": Preprocess(size=(40, 50), dtype="int8", scale=1.0, mean=(128.0,)),
    "coarse": Preprocess(size=(6, 8), dtype="uint8", scale=0.5),
}
WIDTH, HEIGHT = 31, 20
_READ = """\
import Foundation

func bytes(_ name: String) -> [UInt8] { [UInt8](FileManager.default.contents(atPath: name)!) }
func values<Element>(_ name: String, _ type: Element.Type) -> [Element] {
    bytes(name).withUnsafeBytes { Array($0.bindMemory(to: Element.self)) }
}
func write<Element>(_ values: [Element], _ name: String) {
    FileManager.default.createFile(atPath: name, contents: values.withUnsafeBytes { Data($0) })
}
let rgba = bytes("rgba.bin")
"""


def _wrong_tensors(contract: Preprocess, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return golden tensors with what somebody else made of the same pictures, right and wrong in every usual way."""
    random = np.random.default_rng(seed)
    pairs = []
    for shown in (3, 256):
        picture = Image.fromarray(random.integers(0, shown, (HEIGHT, WIDTH, 3), np.uint8))
        golden = contract.apply(picture)
        others = [
            dataclasses.replace(contract, scale=scale, mean=mean, std=std, layout=layout, color=color)
            for scale, mean, std in (
                (contract.scale, contract.mean, contract.std),
                (1.0, contract.mean, contract.std),
                (contract.scale**2, contract.mean, contract.std),
                (contract.scale, (0.0,), (1.0,)),
                (1.0, (0.0,), (1.0,)),
            )
            for layout in ("NCHW", "NHWC")
            for color in {contract.color, contract.color[::-1]}
        ]
        others += [dataclasses.replace(contract, resize="nearest"), dataclasses.replace(contract, fit="crop")]
        made = [other.apply(picture) for other in others]
        step = 2 * contract.scale / max(contract.std)
        made += [
            golden[..., :-1],
            (golden + step).astype(golden.dtype),
            (golden + 2 * step).astype(golden.dtype),
        ]
        if golden.dtype == np.float32:
            made += [np.where(np.arange(golden.size).reshape(golden.shape) % 5, golden, np.float32("nan"))]
        pairs += [(golden, np.ascontiguousarray(tensor)) for tensor in made]
    return pairs


@pytest.mark.slow
@needs_swift
def test_prepares_pictures_and_names_mistakes_exactly_as_the_tool_does(tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    calls, cases = [], {}
    for number, (name, contract) in enumerate(CONTRACTS.items()):
        sources = swift.sources(request_for(name=name, preprocess=contract.to_dict()))
        title = naming.type_name(name)
        for path, text in sources.items():
            if "golden" not in path and "Contract" not in path:
                (folder / Path(path).name).write_text(text, encoding="utf-8")
        element = {"float32": "Float", "uint8": "UInt8", "int8": "Int8"}[contract.dtype]
        call = (
            f'write({title}Preprocessing.tensor(rgba: rgba, width: {WIDTH}, height: {HEIGHT}), "{name}.bin")'
        )
        cases[name] = _wrong_tensors(contract, number)
        for case, (golden, got) in enumerate(cases[name]):
            (folder / f"{name}-{case}-golden.bin").write_bytes(golden.tobytes())
            (folder / f"{name}-{case}-got.bin").write_bytes(got.tobytes())
        calls.append(
            f"{call}\nfor number in 0..<{len(cases[name])} {{\n"
            f'    let golden = values("{name}-\\(number)-golden.bin", {element}.self)\n'
            f'    let got = values("{name}-\\(number)-got.bin", {element}.self)\n'
            f"    let finding = {title}Mistakes.name(expected: golden, got: got)\n"
            f'    said.append(["{name}", finding.code, finding.sentence])\n}}'
        )
    answer = "print(String(data: try! JSONEncoder().encode(said), encoding: .utf8)!)"
    program = [_READ, "var said = [[String]]()", *calls, answer]
    (folder / "main.swift").write_text("\n".join(program), encoding="utf-8")
    pixels = np.random.default_rng(11).integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    pixels[:, :16, 3] = 255
    (folder / "rgba.bin").write_bytes(pixels.tobytes())

    run_swift("-O", *sorted(folder.glob("*.swift")), "-o", "program", folder=folder, tool="swiftc")
    said = iter(json.loads(run_swift(folder / "program", folder=folder, tool="env").splitlines()[-1]))

    for name, contract in CONTRACTS.items():
        expected = contract.apply(Image.fromarray(pixels, "RGBA"))
        tensor = np.frombuffer((folder / f"{name}.bin").read_bytes(), contract.dtype).reshape(expected.shape)
        np.testing.assert_array_equal(tensor, expected, err_msg=name)
        for golden, got in cases[name]:
            assert next(said) == [name, *name_mistake(golden, got, contract.to_dict())]
    codes = {
        name_mistake(*pair, CONTRACTS[name].to_dict())[0] for name, pairs in cases.items() for pair in pairs
    }
    assert {"ok", "size", "not-finite", "resize", "color", "layout", "range", "scaled-twice"} <= codes
    assert {"normalisation", "raw", "color+layout", "raw+color+layout"} <= codes

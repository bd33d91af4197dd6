"""SwiftPM itself: it resolves what the registry holds, builds it, and replays the golden vectors.

Real are SwiftPM, the compiler, XCTest, the packages as cloned, the pictures, and onnxruntime behind its double. Core ML,
Core Graphics and CryptoKit exist on Apple's systems alone: doubles with their signatures stand in for them, so that every
line of the generated Swift is compiled and run, and Core ML's own answers are not.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ios_ground import make_bundle, needs_git, pack, serve, write_view
from swift_ground import DOUBLES, ROOT, build_double, needs_swift, run_swift

from targets.ios.git_repository import commit_of, references

pytestmark = [pytest.mark.slow, needs_swift, needs_git]

APPLE = ("OnnxRuntimeBindings", "CoreML", "CoreGraphics", "CryptoKit")
ONNXRUNTIME = "onnxruntime-swift-package-manager"
_MANIFEST = """\
// swift-tools-version: 5.9
import PackageDescription
let package = Package(
    name: "App", platforms: [.iOS("17.0"), .macOS("14.0")],
    dependencies: [%s],
    targets: [.executableTarget(name: "App", dependencies: [%s])]
)
"""
_ONNXRUNTIME_MANIFEST = b"""\
// swift-tools-version: 5.9
import PackageDescription
let package = Package(
    name: "onnxruntime", products: [.library(name: "onnxruntime", targets: ["OnnxRuntimeBindings"])],
    targets: [.target(name: "OnnxRuntimeBindings")]
)
"""
_CLASSIFIES = """
import CoreGraphics
import XCTest

extension %(tests)s {
    func testClassifiesPictures() throws {
        let (golden, model) = (try %(prefix)sGolden.load(), try %(type)s())
        for sample in golden.samples {
            let picture = try XCTUnwrap(sample.pictures["image"])
            let scores = try model.classify(rgba: picture.rgba, width: picture.width, height: picture.height)
            let levels = picture.rgba.enumerated().filter { $0.offset %% 4 != 3 }.map { $0.element }
            let image = CGImage(width: picture.width, height: picture.height, levels: levels, model: .rgb)
            XCTAssertEqual(try model.classify(image), scores)
            let wanted = try XCTUnwrap(sample.reference["logits"]).values
            XCTAssertEqual(scores.map { $0.index }, wanted.indices.sorted { wanted[$0] > wanted[$1] })
            XCTAssertEqual(scores.map { $0.label }, scores.map { %(prefix)sContract.labels[$0.index] })
        }
        XCTAssertThrowsError(try model.run(image: [1, 2])) { XCTAssertTrue("\\($0)".contains("takes 60 values")) }
    }

    func testTellsAnotherAnswerApart() throws {
        let golden = try %(prefix)sGolden.load()
        let wrong = ["logits": try XCTUnwrap(golden.samples[0].reference["logits"]).values.map { $0 * -3 }]
        XCTAssertFalse(golden.failures(of: %(file)s, in: golden.samples[0], answers: wrong).isEmpty)
        XCTAssertEqual(golden.failures(of: %(file)s, in: golden.samples[0], answers: [:]).count, 1)
    }
}
"""
_REFUSES = """
extension %(tests)s {
    func testRefusesOtherBytes() throws {
        let path = NSTemporaryDirectory() + "/other-\\(UUID()).onnx"
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: path))
        XCTAssertThrowsError(try %(type)s(path: path)) { XCTAssertTrue("\\($0)".contains("has SHA-256 039058c6")) }
    }
}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    write_view(pack(make_bundle(folder / "bundle"), folder / "root"), folder / "root")
    return folder / "root"


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apple") / "doubles"
    folder.mkdir()
    for name in APPLE:
        build_double(name, folder)
    return folder


def app(folder: Path, url: str, product: str, package: str) -> Path:
    (folder / "Sources" / "App").mkdir(parents=True)
    dependency = f'.package(url: "{url}", exact: "1.0.0")'
    manifest = _MANIFEST % (dependency, f'.product(name: "{product}", package: "{package}")')
    (folder / "Package.swift").write_text(manifest, encoding="utf-8")
    (folder / "Sources" / "App" / "main.swift").write_text(
        f"import {product}\nprint(TinyNetContract.labels.count)\n", encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize("is_served", [False, True], ids=["folder", "http"])
def test_swiftpm_resolves_and_fetches_nothing_else(is_served: bool, registry: Path, tmp_path: Path) -> None:
    with serve(registry) as served:
        root = served if is_served else registry.as_uri()
        url = f"{root}/swift/tiny-net-coreml.git"
        folder = app(tmp_path / "app", url, "TinyNetFloat16CoreML", "tiny-net-coreml")
        said = run_swift("package", "resolve", folder=folder)
    assert "resolved at 1.0.0" in said
    (pin,) = json.loads((folder / "Package.resolved").read_text())["pins"]
    commit = (registry / "swift/tiny-net-coreml.git/refs/tags/1.0.0").read_text().strip()
    assert pin["identity"] == "tiny-net-coreml"
    assert pin["state"] == {"revision": commit, "version": "1.0.0"}


def test_swiftpm_reads_the_manifest_as_it_was_meant_and_agrees_on_the_checksum(
    registry: Path, tmp_path: Path
) -> None:
    (archive,) = registry.glob("swift/tiny-net-onnxruntime/1.0.0/*.zip")
    shutil.unpack_archive(archive, tmp_path)
    folder = tmp_path / "tiny-net-onnxruntime"

    package = json.loads(run_swift("package", "dump-package", folder=folder))
    assert [product["name"] for product in package["products"]] == [
        "TinyNetFloat32FixedOnnx",
        "TinyNetStaticWi8Ai8Onnx",
        "TinyNetOnnxGolden",
    ]
    assert {item["platformName"]: item["version"] for item in package["platforms"]} == {
        "ios": "17.0",
        "macos": "14.0",
    }
    needs = {
        target["name"]: [need["product"][0] for need in target["dependencies"] if "product" in need]
        for target in package["targets"]
    }
    assert [name for name, products in needs.items() if "onnxruntime" in products] == [
        "TinyNetFloat32FixedOnnx",
        "TinyNetStaticWi8Ai8Onnx",
    ]
    told = run_swift("package", "compute-checksum", archive, folder=folder).strip()
    assert told == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (archive.parent / f"{archive.name}.sha256").read_text().split()[0] == told


@pytest.mark.parametrize(
    ("package", "first", "prefix"),
    [
        ("tiny-net-coreml", "TinyNetFloat16CoreML", "TinyNetCoreML"),
        ("tiny-net-onnxruntime", "TinyNetStaticWi8Ai8Onnx", "TinyNetOnnx"),
    ],
)
def test_xctest_replays_the_golden_vectors(
    package: str, first: str, prefix: str, registry: Path, doubles: Path, tmp_path: Path
) -> None:
    (archive,) = registry.glob(f"swift/{package}/1.0.0/*.zip")
    shutil.unpack_archive(archive, tmp_path)
    folder = tmp_path / package
    is_core_ml = package.endswith("coreml")
    values = {
        "tests": f"{prefix}GoldenTests",
        "prefix": "TinyNet",
        "type": first,
        "file": '"tiny-net-float16.mlpackage"' if is_core_ml else '"tiny-net-static_wi8_ai8.onnx"',
    }
    tests = folder / "Tests" / values["tests"] / f"{values['tests']}.swift"
    tests.write_text(tests.read_text() + _CLASSIFIES % values + ("" if is_core_ml else _REFUSES % values))
    if not is_core_ml:
        _mirror_onnxruntime(folder, tmp_path)
    links = ["CoreML", "OnnxRuntimeBindings", "CoreGraphics"] if is_core_ml else ["CoreGraphics", "CryptoKit"]
    visible = tmp_path / "modules"
    visible.mkdir()
    for name in links:
        for file in doubles.glob(f"*{name}.s*"):
            shutil.copy(file, visible)
    flags = [
        "-Xswiftc",
        f"-I{visible}",
        "-Xlinker",
        f"-L{visible}",
        "-Xlinker",
        "-rpath",
        "-Xlinker",
        visible,
    ]
    flags += [flag for name in links for flag in ("-Xlinker", f"-l{name}")]

    said = run_swift(
        *("test", "--enable-xctest", "--disable-swift-testing", "-debug-info-format", "none", *flags),
        folder=folder,
        EDGE_INFER=f"{sys.executable} {DOUBLES / 'infer.py'}",
        EDGE_CORE_ML_TWIN=str(registry.parent / "bundle/models/tiny-net-float32-fixed.onnx"),
    )

    passed = set(re.findall(rf"Test Case '{prefix}GoldenTests\.(\w+)' passed", said))
    models = {"TinyNetFloat16CoreML", "TinyNetWeightOnlyWi8CoreML"}
    more = {
        "testClassifiesPictures",
        "testTellsAnotherAnswerApart",
        "testGoldenPicturesBecomeTheGoldenTensors",
    }
    if not is_core_ml:
        models, more = (
            {"TinyNetFloat32FixedOnnx", "TinyNetStaticWi8Ai8Onnx"},
            more | {"testRefusesOtherBytes"},
        )
    assert passed == {f"test{model}" for model in models} | more
    assert "warning:" not in said


def _mirror_onnxruntime(folder: Path, scratch: Path) -> None:
    """Tell SwiftPM to take onnxruntime's package from a repository of the double: its own binary is for Apple's systems."""
    files = {
        "Package.swift": _ONNXRUNTIME_MANIFEST,
        "Sources/OnnxRuntimeBindings/OnnxRuntimeBindings.swift": (
            DOUBLES / "OnnxRuntimeBindings.swift"
        ).read_bytes(),
    }
    commit = commit_of(files, "a double")
    repository = scratch / f"{ONNXRUNTIME}.git"
    for path, content in {**commit.objects, **references({"1.20.0": commit.name}, "1.20.0")}.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_bytes(content)
    original = f"https://github.com/microsoft/{ONNXRUNTIME}"
    run_swift(
        *("package", "config", "set-mirror", "--original", original, "--mirror", repository.as_uri()),
        folder=folder,
    )


def test_the_toolchain_script_names_its_fix_where_there_is_none(tmp_path: Path) -> None:
    ran = subprocess.run(
        [ROOT / "scripts" / "swift_toolchain"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (12, "")
    assert ran.stderr.startswith("error: no Swift here; fix: scripts/swift_toolchain --install")

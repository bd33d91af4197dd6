"""Swift packages: what they hold, how versions lie side by side, and what git and coremltools make of a clone."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ios_ground import ARTIFACTS, LABELS, make_bundle, needs_git, pack, serve, write_view
from swift_ground import syntax_errors

from exporter.bundle.manifest import read_manifest
from exporter.errors import IntegrityError, UnsupportedError
from targets.ios import swiftpm
from targets.ios.target import TARGET
from targets.packaging.base import Package, PackRequest, Packs, Published, read_bundle

CORE_ML_FILES = [
    "Package.swift",
    "README.md",
    "Sources/TinyNetCoreMLContract/TinyNetContract.swift",
    "Sources/TinyNetCoreMLContract/TinyNetMistakes.swift",
    "Sources/TinyNetCoreMLContract/TinyNetPreprocessing.swift",
    "Sources/TinyNetCoreMLGolden/TinyNetGolden.swift",
    "Sources/TinyNetCoreMLGolden/golden/0/…",
    "Sources/TinyNetCoreMLGolden/golden/1/…",
    "Sources/TinyNetCoreMLGolden/golden/golden.json",
    "Sources/TinyNetFloat16CoreML/Resources/tiny-net-float16.mlpackage/Data/com.apple.CoreML/model.mlmodel",
    "Sources/TinyNetFloat16CoreML/Resources/tiny-net-float16.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    "Sources/TinyNetFloat16CoreML/Resources/tiny-net-float16.mlpackage/Manifest.json",
    "Sources/TinyNetFloat16CoreML/TinyNetFloat16CoreML.swift",
    "Tests/TinyNetCoreMLGoldenTests/TinyNetCoreMLGoldenTests.swift",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ios") / "bundle")


def unzipped(package: Package, registry: Path) -> dict[str, bytes]:
    (path,) = (path for path in package.files if path.endswith(".zip"))
    with zipfile.ZipFile(registry / path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def short(names: list[str]) -> list[str]:
    """Return paths with the many arrays of a golden sample as one."""
    return sorted({re.sub(r"(golden/\d/).*", r"\1…", name) for name in names})


def test_a_package_for_each_runtime_with_a_module_for_each_artifact(bundle: Path, tmp_path: Path) -> None:
    core_ml, onnx = pack(bundle, tmp_path)

    assert isinstance(TARGET, Packs)
    assert (core_ml.ecosystem, core_ml.name, core_ml.version) == ("swift", "tiny-net-coreml", "1.0.0")
    assert core_ml.lines == (
        '.package(url: "{registry}/swift/tiny-net-coreml.git", exact: "1.0.0"),',
        '.product(name: "TinyNetFloat16CoreML", package: "tiny-net-coreml"),  // mlpackage:float16, 0.08 MB',
        '.product(name: "TinyNetWeightOnlyWi8CoreML", package: "tiny-net-coreml"),'
        "  // mlpackage:weight_only_wi8, 0.08 MB",
    )
    files = [name.removeprefix("tiny-net-coreml/") for name in unzipped(core_ml, tmp_path)]
    second = [name for name in files if "WeightOnlyWi8" in name]
    assert short([name for name in files if name not in second]) == CORE_ML_FILES
    assert len(second) == 4
    modules = {name.split("/")[2] for name in unzipped(onnx, tmp_path) if "/Sources/" in name}
    assert modules == {
        "TinyNetFloat32FixedOnnx",
        "TinyNetStaticWi8Ai8Onnx",
        "TinyNetOnnxContract",
        "TinyNetOnnxGolden",
    }


def test_what_is_packed_are_the_bundle_s_own_bytes(bundle: Path, tmp_path: Path) -> None:
    by_name = {path.name: path.read_bytes() for path in (bundle / "integration").rglob("*.swift")}
    for package in pack(bundle, tmp_path):
        files = unzipped(package, tmp_path)
        swift = {Path(name).name: text for name, text in files.items() if name.endswith(".swift")}
        del swift["Package.swift"]
        assert swift.items() <= by_name.items()
        for name, content in files.items():
            if "/Resources/" in name:
                assert content == (bundle / "models" / name.partition("/Resources/")[2]).read_bytes()
            if "/golden/" in name:
                assert content == (bundle / "golden" / name.partition("/golden/")[2]).read_bytes()


def test_the_manifest_names_what_was_packed(bundle: Path, tmp_path: Path) -> None:
    core_ml, onnx = (
        unzipped(package, tmp_path)[f"{package.name}/Package.swift"].decode()
        for package in pack(bundle, tmp_path)
    )

    for text in (core_ml, onnx):
        assert syntax_errors(text) == []
        assert text.startswith("// swift-tools-version: 5.9\n")
    assert re.findall(r'\.library\(name: "(\w+)", targets: \["(\w+)"\]\)', core_ml) == [
        (name, name) for name in ("TinyNetFloat16CoreML", "TinyNetWeightOnlyWi8CoreML", "TinyNetCoreMLGolden")
    ]
    assert re.findall(r'\.copy\("([^"]+)"\)', core_ml) == [
        "Resources/tiny-net-float16.mlpackage",
        "Resources/tiny-net-weight_only_wi8.mlpackage",
        "golden",
    ]
    assert "onnxruntime" not in core_ml
    needs = (
        '"TinyNetOnnxContract", .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")'
    )
    assert onnx.count(f"dependencies: [{needs}]") == 2


@pytest.mark.parametrize(
    ("minimum", "platforms"),
    [
        ("17", '.iOS("17.0"), .macOS("14.0")'),
        ("17.4", '.iOS("17.4"), .macOS("14.4")'),
        ("18", '.iOS("18.0"), .macOS("15.0")'),
        ("26.1", '.iOS("26.1"), .macOS("26.1")'),
    ],
)
def test_the_manifest_asks_for_the_minimum_that_the_bundle_was_built_for(
    minimum: str, platforms: str, tmp_path: Path
) -> None:
    made = make_bundle(tmp_path / "bundle", artifacts=ARTIFACTS[:1], minimum=minimum)
    (package,) = pack(made, tmp_path / "registry")

    manifest = unzipped(package, tmp_path / "registry")["tiny-net-coreml/Package.swift"].decode()
    assert f"platforms: [{platforms}]" in manifest


def test_the_readme_tells_files_apart_by_their_digests(bundle: Path, tmp_path: Path) -> None:
    core_ml, onnx = pack(bundle, tmp_path)

    text = unzipped(core_ml, tmp_path)["tiny-net-coreml/README.md"].decode()
    for model in read_bundle(bundle).models[:2]:
        assert f"| `{model.file}` | coreml | 0.077 MB | `{model.sha256}` |" in text
    assert "let model = try TinyNetFloat16CoreML()\nlet scores = try model.classify(image)" in text
    assert (
        "# tiny-net 1.0.0 for onnxruntime"
        in unzipped(onnx, tmp_path)["tiny-net-onnxruntime/README.md"].decode()
    )


def test_the_checksum_is_the_zip_s_and_comes_last(bundle: Path, tmp_path: Path) -> None:
    for package in pack(bundle, tmp_path):
        *objects, archive, checksum = package.files
        digest = hashlib.sha256((tmp_path / archive).read_bytes()).hexdigest()
        assert (tmp_path / checksum).read_text() == f"{digest}  {Path(archive).name}\n"
        assert package.facts["checksum"] == digest
        assert objects[-1].endswith(f"{package.facts['commit'][:2]}/{package.facts['commit'][2:]}")
        assert sorted(package.files) == sorted(
            path.relative_to(tmp_path).as_posix()
            for path in (tmp_path / "swift").rglob("*")
            if path.is_file() and package.name in str(path)
        )


def test_equal_bundles_give_equal_packages_anywhere(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "some" / "where else"
    shutil.copytree(bundle, moved)
    first, second = pack(bundle, tmp_path / "one"), pack(moved, tmp_path / "two")

    assert first == second
    for package in first:
        for path in package.files:
            content = (tmp_path / "one" / path).read_bytes()
            assert content == (tmp_path / "two" / path).read_bytes()
            assert str(tmp_path).encode() not in content


@needs_git
@pytest.mark.parametrize("is_served", [False, True], ids=["folder", "http"])
def test_two_versions_lie_side_by_side(is_served: bool, bundle: Path, tmp_path: Path) -> None:
    newer = make_bundle(tmp_path / "newer", version="1.1.0", artifacts=ARTIFACTS[:2])
    coming = make_bundle(tmp_path / "coming", version="2.0.0-rc.1", artifacts=ARTIFACTS[:1])
    registry = tmp_path / "registry"
    versions = {
        package.version: package
        for made in (bundle, newer, coming)
        for package in pack(made, registry)
        if package.name == "tiny-net-coreml"
    }
    write_view(tuple(versions.values()), registry)

    mirror, checkout = tmp_path / "mirror", tmp_path / "checkout"
    with serve(registry) as served:
        root = served if is_served else registry.as_uri()
        url = f"{root}/swift/tiny-net-coreml.git"
        _git("clone", "--quiet", "--mirror", url, str(mirror))
    assert _git("-C", str(mirror), "fsck", "--strict", "--full") == ""
    assert _git("-C", str(mirror), "tag").split() == ["1.0.0", "1.1.0", "2.0.0-rc.1"]
    assert _git("-C", str(mirror), "rev-parse", "HEAD").strip() == versions["1.1.0"].facts["commit"]
    _git("clone", "--quiet", str(mirror), str(checkout))
    for version, package in versions.items():
        _git("-C", str(checkout), "checkout", "--quiet", version)
        there = {
            f"{package.name}/{path.relative_to(checkout).as_posix()}": path.read_bytes()
            for path in checkout.rglob("*")
            if path.is_file() and ".git" not in path.relative_to(checkout).parts
        }
        assert there == unzipped(package, registry), version


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _published(*versions: str) -> list[Published]:
    return [
        Published(
            Package(
                swiftpm.Ecosystem.SWIFT,
                "a-coreml",
                version,
                (),
                (),
                {"repository": "swift/a-coreml.git", "commit": hashlib.sha1(version.encode()).hexdigest()},
            ),
            {},
            {},
        )
        for version in versions
    ]


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (("1.9.0", "1.10.0", "1.2.0"), "1.10.0"),
        (("1.0.0", "2.0.0-rc.1"), "1.0.0"),
        (("1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta.11", "1.0.0-beta.2"), "1.0.0-beta.11"),
        (("1.0.0+b.2", "1.0.0+b.10"), "1.0.0+b.2"),
    ],
)
def test_the_branch_is_at_the_newest_release(versions: tuple[str, ...], newest: str) -> None:
    view = swiftpm.view(_published(*versions))

    assert view == swiftpm.view(list(reversed(_published(*versions))))
    commit = hashlib.sha1(newest.encode()).hexdigest()
    assert view["swift/a-coreml.git/refs/heads/main"] == f"{commit}\n".encode()
    assert view["swift/a-coreml.git/HEAD"] == b"ref: refs/heads/main\n"
    listed = view["swift/a-coreml.git/info/refs"].decode().splitlines()
    assert [line.split("\t")[1] for line in listed] == [
        "refs/heads/main",
        *(f"refs/tags/{version}" for version in sorted(versions)),
    ]


def test_a_view_of_nothing_is_nothing() -> None:
    assert swiftpm.view([]) == {}


@pytest.mark.parametrize("name", ["3d.sample-net", "a", "x.y_z-1"])
def test_any_model_s_name_makes_modules(name: str, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", name=name, contract={"kind": "identity"})
    for package in pack(made, tmp_path / "registry"):
        files = unzipped(package, tmp_path / "registry")
        manifest = files[f"{package.name}/Package.swift"].decode()
        assert syntax_errors(manifest) == []
        named = re.findall(r'\.(?:target|testTarget)\(\s*name: "([^"]+)"', manifest)
        assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]*", module) for module in named)
        folders = {"/".join(path.split("/")[1:3]) for path in files if path.count("/") > 1}
        assert {folder.split("/")[1] for folder in folders} == set(named)
        assert not any("Mistakes" in path or "Preprocessing" in path for path in files)


def test_labels_travel_in_the_contract(bundle: Path, tmp_path: Path) -> None:
    core_ml, _ = pack(bundle, tmp_path)

    text = unzipped(core_ml, tmp_path)[
        "tiny-net-coreml/Sources/TinyNetCoreMLContract/TinyNetContract.swift"
    ].decode()
    assert re.findall(r"^        (\".*\"),?$", text, re.MULTILINE) == [
        '"cat"',
        r'"a \"quoted\" $dog"',
        r'"na\u{EF}ve bird"',
    ]
    assert len(LABELS) == 3


def test_a_bundle_of_an_older_tool_is_refused(bundle: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(bundle, old)
    shutil.rmtree(old / "integration" / "swift" / "golden")

    with pytest.raises(
        IntegrityError, match=r"has no integration/swift/golden/TinyNet\w*Golden\w*\.swift"
    ) as caught:
        pack(old, tmp_path / "registry")
    assert caught.value.fix == "build the bundle again with this version"


def test_options_that_the_target_never_had_are_refused(bundle: Path, tmp_path: Path) -> None:
    assert read_manifest(bundle)["options"] == {"minimum": "17"}
    read = dataclasses.replace(read_bundle(bundle), options={"minimum": "9"})

    with pytest.raises(IntegrityError, match="options that the ios target does not have"):
        TARGET.pack(PackRequest(read, tmp_path))


def test_a_version_that_no_tag_spells_is_refused_before_anything_is_written(
    bundle: Path, tmp_path: Path
) -> None:
    read = dataclasses.replace(read_bundle(bundle), version="1.0.0-rc.lock")

    with pytest.raises(UnsupportedError, match="git allows no tag"):
        TARGET.pack(PackRequest(read, tmp_path))
    assert list(tmp_path.iterdir()) == []


_WRITE_PACKAGE = """
import sys, numpy, coremltools
from coremltools.converters.mil import Builder

@Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 60))])
def program(image):
    weight = numpy.arange(180, dtype=numpy.float32).reshape(3, 60)
    return Builder.linear(x=image, weight=weight, name="logits")

target = coremltools.target.iOS16
model = coremltools.convert(program, minimum_deployment_target=target, skip_model_load=True)
model.user_defined_metadata["edge.contract"] = "{}"
model.save(sys.argv[1])
"""
_COMPARE_PACKAGES = """
import sys, coremltools
here, there = (coremltools.utils.load_spec(path) for path in sys.argv[1:])
assert here == there
print([feature.name for feature in here.description.input], dict(here.description.metadata.userDefined)["edge.contract"])
"""


def _coremltools(program: str, *arguments: Path) -> str:
    """Run a program in a process of its own: the import alone warns and takes seconds."""
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
@needs_git
def test_a_core_ml_package_out_of_a_clone_is_read_by_coremltools(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", artifacts=ARTIFACTS[:1])
    target = made / "models" / "tiny-net-float16.mlpackage"
    shutil.rmtree(target)
    _coremltools(_WRITE_PACKAGE, target)
    registry = tmp_path / "registry"
    write_view(pack(made, registry), registry)

    with serve(registry) as served:
        _git("clone", "--quiet", f"{served}/swift/tiny-net-coreml.git", str(tmp_path / "checkout"))
    resources = tmp_path / "checkout" / "Sources" / "TinyNetFloat16CoreML" / "Resources"
    assert _coremltools(_COMPARE_PACKAGES, resources / target.name, target) == "['image'] {}"


def test_the_zip_opens_without_warnings(bundle: Path, tmp_path: Path) -> None:
    for package in pack(bundle, tmp_path):
        content = (tmp_path / package.files[-2]).read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}

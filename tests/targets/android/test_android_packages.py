"""What an Android bundle becomes: AARs with all that an app needs and nothing else, golden vectors apart, equal bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from android_ground import (
    ARTIFACTS,
    fails_or_not,
    make_bundle,
    models_of,
    pack,
    run,
    seal,
    unpacked,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exporter.bundle.names import NAME_RULE
from exporter.errors import InputError, IntegrityError, UnsupportedError
from targets.android.model import _segment
from targets.android.target import AndroidOptions

FLOAT = "maven/edge/models/tiny-net-float16-tflite/1.0.0/tiny-net-float16-tflite-1.0.0"
PACKAGE = "edge/models/tiny_net/float16_tflite"


def listing(content: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        return archive.namelist()


def member(content: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(name)


def test_every_artifact_is_a_package_of_its_own_with_its_tests_beside_it(tmp_path: Path) -> None:
    packages = pack(make_bundle(tmp_path / "bundle"), tmp_path / "registry")

    names = ["static-wi8-ai8-fixed-onnx", "static-wi8-ai8-tflite", "float16-tflite"]
    assert [package.name for package in packages] == [
        f"edge.models:tiny-net-{name}{suffix}" for name in names for suffix in ("", "-golden")
    ]
    assert packages[0].lines == (
        'maven { url = uri("{registry}/maven") }',
        'implementation("edge.models:tiny-net-static-wi8-ai8-fixed-onnx:1.0.0")'
        "  // onnx:static_wi8_ai8@fixed, 0.00 MB",
    )
    assert packages[2].lines == (
        'implementation("edge.models:tiny-net-static-wi8-ai8-tflite:1.0.0")  // tflite:static_wi8_ai8, 0.00 MB',
    )
    assert 'testImplementation("edge.models:tiny-net-float16-tflite-golden:1.0.0")' in packages[5].lines
    assert [package.files[-1].rpartition(".")[2] for package in packages] == ["pom"] * 6


def test_an_aar_holds_the_model_its_classes_and_a_manifest(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", options={"minimum_sdk": 26})
    pack(bundle, tmp_path / "registry")
    aar = (tmp_path / f"registry/{FLOAT}.aar").read_bytes()

    file = "tiny-net-float16.tflite"
    assert listing(aar) == ["AndroidManifest.xml", "R.txt", f"assets/edge/tiny-net/{file}", "classes.jar"]
    assert member(aar, f"assets/edge/tiny-net/{file}") == (bundle / "models" / file).read_bytes()
    manifest = member(aar, "AndroidManifest.xml").decode()
    assert 'package="edge.models.tiny_net.float16_tflite"' in manifest
    assert 'android:minSdkVersion="26"' in manifest
    jar = member(aar, "classes.jar")
    classes = [
        "Contract",
        "Label",
        "LiteRtModel",
        "ModelInfo$Tensor",
        "ModelInfo",
        "Postprocessing$1",
        "Postprocessing",
    ]
    classes += ["Preprocessing$Pixels", "Preprocessing$Weights", "Preprocessing", "Tensors"]
    assert listing(jar) == [
        *(f"{PACKAGE}/{name}.class" for name in classes),
        f"{PACKAGE}/model.properties",
    ]
    assert jar == (bundle / "integration/libs/tiny-net-float16-tflite.jar").read_bytes()
    sources = listing((tmp_path / f"registry/{FLOAT}-sources.jar").read_bytes())
    assert f"{PACKAGE}/TinyNetFloat16LiteRt.kt" in sources
    assert [name.rpartition("/")[2] for name in sources if name.endswith(".java")] == [
        f"{name}.java" for name in sorted({name.split("$")[0] for name in classes})
    ]


def test_the_golden_vectors_start_from_pictures_and_are_in_no_app(tmp_path: Path) -> None:
    pack(make_bundle(tmp_path / "bundle"), tmp_path / "registry")
    path = FLOAT.replace("float16-tflite", "float16-tflite-golden")

    names = listing((tmp_path / f"registry/{path}.jar").read_bytes())
    assert [name for name in names if not name.endswith(".class")] == [
        *(
            f"{PACKAGE}/golden/{number}/{name}"
            for number in (0, 1)
            for name in ("input0.npy", "output0.npy", "raw0.png", "reference0.npy")
        ),
        f"{PACKAGE}/golden/golden.properties",
    ]
    assert f"{PACKAGE}/GoldenVectors.class" in names
    assert b"<dependency>" not in (tmp_path / f"registry/{path}.pom").read_bytes()


def test_a_bundle_without_pictures_is_packed_without_them(tmp_path: Path) -> None:
    pack(make_bundle(tmp_path / "bundle", with_pictures=False), tmp_path / "registry")
    path = FLOAT.replace("float16-tflite", "float16-tflite-golden")

    names = listing((tmp_path / f"registry/{path}.jar").read_bytes())
    assert not [name for name in names if name.endswith(".png")]
    assert f"{PACKAGE}/golden/1/input0.npy" in names


def test_equal_bundles_give_equal_packages_wherever_and_by_whomever(tmp_path: Path) -> None:
    first = pack(make_bundle(tmp_path / "one"), tmp_path / "here")
    mask = os.umask(0o077)
    try:
        second = pack(make_bundle(tmp_path / "elsewhere" / "two"), tmp_path / "there")
    finally:
        os.umask(mask)

    assert first == second
    for package in first:
        for path in package.files:
            assert (tmp_path / "here" / path).read_bytes() == (tmp_path / "there" / path).read_bytes(), path
    aar = (tmp_path / f"here/{FLOAT}.aar").read_bytes()
    assert str(tmp_path).encode() not in aar
    with zipfile.ZipFile(io.BytesIO(aar)) as archive:
        assert {stat.S_IMODE(entry.external_attr >> 16) for entry in archive.infolist()} == {0o644}


def test_group_is_the_start_of_coordinates_and_packages(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", options={"group": "com.example.ml"}, artifacts=["onnx:float32"])
    packages = pack(bundle, tmp_path / "registry")

    assert packages[0].name == "com.example.ml:tiny-net-float32-onnx"
    assert packages[0].files[-1].startswith("maven/com/example/ml/tiny-net-float32-onnx/1.0.0/")
    (model,) = models_of(bundle)
    assert model.package == "com.example.ml.tiny_net.float32_onnx"


@pytest.mark.parametrize("group", ["", "Edge", "edge..models", "edge.", "edge.new", "in.a", "a/b", "é", "1a"])
def test_a_group_that_is_no_java_package_is_refused(group: str) -> None:
    with pytest.raises(ValidationError, match="group is a Java package in lower case"):
        AndroidOptions(group=group)


def test_an_older_android_than_the_runtimes_take_is_refused() -> None:
    with pytest.raises(ValidationError, match="minimum_sdk is an API level from 24"):
        AndroidOptions(minimum_sdk=23)


def test_options_that_the_target_does_not_have_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    seal(bundle, options={"colour": "red"})

    with pytest.raises(IntegrityError, match="was built with options that the android target does not have"):
        pack(bundle, tmp_path / "registry")


def test_what_models_json_does_not_describe_is_not_packed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    path = bundle / "models/tiny-net-float16.tflite"
    path.write_bytes(b"other")
    with pytest.raises(IntegrityError, match="is not the file that models"):
        pack(bundle, tmp_path / "registry")
    path.unlink()
    with pytest.raises(InputError, match="tiny-net-float16"):
        pack(bundle, tmp_path / "other")


def test_weights_beside_the_model_cannot_be_an_asset(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", artifacts=["onnx:float32"])
    document = json.loads((bundle / "models.json").read_text())
    document["models"][0]["companions"] = ["tiny-net-float32.onnx.data"]
    (bundle / "models.json").write_text(json.dumps(document))

    with pytest.raises(UnsupportedError, match=r"keeps its weights in tiny-net-float32\.onnx\.data"):
        pack(bundle, tmp_path / "registry")


def test_golden_vectors_that_no_build_wrote_are_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    document = json.loads((bundle / "golden/golden.json").read_text())
    document["samples"][0]["raw"]["image"] = "../../secret"
    (bundle / "golden/golden.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="outside its folder"):
        pack(bundle, tmp_path / "registry")
    del document["tolerance"]
    (bundle / "golden/golden.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="'tolerance'"):
        pack(bundle, tmp_path / "other")


@given(st.lists(st.from_regex(NAME_RULE, fullmatch=True), min_size=2, max_size=2, unique=True))
def test_no_two_models_share_a_package(names: list[str]) -> None:
    one, other = map(_segment, names)
    assert one != other
    assert one.replace("_", "a").isalnum() and one.isascii() and one[0].isalpha()


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("digits-cnn", "digits_cnn"),
        ("yolo_v8.s", "yolo__v8___s"),
        ("3d", "Model_3d"),
        ("new", "Model_new"),
        ("object", "Model_object"),
    ],
)
def test_packages_read_like_the_models_name(name: str, segment: str) -> None:
    assert _segment(name) == segment


def test_every_artifact_of_every_model_has_a_package_of_its_own(tmp_path: Path) -> None:
    models = [
        model
        for name in ("a-b", "a_b", "a.b")
        for model in models_of(make_bundle(tmp_path / name, name=name, artifacts=ARTIFACTS))
    ]
    assert len({model.package for model in models}) == len({model.artifact_id for model in models}) == 9
    assert len({model.asset for model in models}) == 9
    assert dataclasses.replace(models[0], group="other").package != models[0].package


FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")


@pytest.mark.skipif(
    not (shutil.which("aapt2") and shutil.which("aapt") and FRAMEWORK.is_file()),
    reason="no aapt; fix: apt-get install aapt android-framework-res",
)
def test_androids_own_tool_compiles_the_manifest_and_reads_it_back(tmp_path: Path) -> None:
    pack(make_bundle(tmp_path / "bundle"), tmp_path / "registry")
    library = unpacked(tmp_path / f"registry/{FLOAT}.aar", tmp_path / "library")
    link = ["aapt2", "link", "-I", FRAMEWORK, "--manifest", library / "AndroidManifest.xml"]

    run(*link, "-A", library / "assets", "-o", "app.apk", cwd=tmp_path)

    for tool in ("aapt", "aapt2"):
        said = run(tool, "dump", "badging", "app.apk", cwd=tmp_path)
        assert said.startswith("package: name='edge.models.tiny_net.float16_tflite'")
        assert "sdkVersion:'24'" in said
    broken = (library / "AndroidManifest.xml").read_text().replace("</manifest>", "")
    (library / "AndroidManifest.xml").write_text(broken)
    assert fails_or_not(*link, "-o", "broken.apk", cwd=tmp_path).returncode != 0

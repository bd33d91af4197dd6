"""The wheel as a file: its names, what lies in it, and that nothing but the bundle decides its bytes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.metadata import Metadata
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version
from pip_ground import pack, with_manifest
from semver import Version as SemVer

from exporter.errors import UnsupportedError
from exporter.recipe.recipe import NAME_RULE
from targets.packaging.base import read_bundle
from targets.raspberry_pi.wheel import Wheel, make_wheel, module_name, pep440, project_name

SECRET = b"not to be shipped"


@pytest.fixture
def wheel(pi_bundle: Path) -> Wheel:
    """The wheel of the tiny bundle, beside files that are none of its business."""
    (pi_bundle / "evidence.json").write_bytes(SECRET)
    (pi_bundle / "models" / "left-behind.onnx").write_bytes(SECRET)
    (pi_bundle / "measured").mkdir()
    (pi_bundle / "measured" / "pi5-0123456789ab.json").write_text('{"format": 1}')
    return make_wheel(read_bundle(with_manifest(pi_bundle)))


# --- names and versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.0.0", "1.0.0"),
        ("0.0.0", "0.0.0"),
        ("1.0.0-alpha.2", "1.0.0a2"),
        ("1.0.0-beta.1", "1.0.0b1"),
        ("1.0.0-rc.1", "1.0.0rc1"),
        ("1.0.0-rc", "1.0.0rc0"),
        ("10.20.30+ab12", "10.20.30+ab12"),
        ("1.0.0-rc.1+Build-007.x--Y", "1.0.0rc1+build.7.x.y"),
    ],
)
def test_a_version_is_spelled_as_pip_spells_it(version: str, expected: str) -> None:
    assert pep440(version) == expected
    assert str(Version(expected)) == expected


@pytest.mark.parametrize(
    "version",
    [
        "1.0.0-nightly",
        "1.0.0-rc1",
        "1.0.0-rc.1.2",
        "1.0.0-rc.01",
        "1.0.0-RC.1",
        "1.0.0-dev.1",
        "1.0.0-a.1",
        "1.0.0-1",
    ],
)
def test_a_prerelease_that_pip_would_order_otherwise_is_refused(version: str) -> None:
    with pytest.raises(UnsupportedError, match="which pip cannot say") as caught:
        pep440(version)
    assert caught.value.fix == "use -alpha.N, -beta.N or -rc.N in model.version"


def test_build_metadata_of_dashes_alone_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"build metadata '--', which pip cannot say"):
        pep440("1.0.0+--")


NUMBERS = st.integers(0, 30)
STAGES = st.one_of(st.just(""), st.builds("-{}.{}".format, st.sampled_from(["alpha", "beta", "rc"]), NUMBERS))
VERSIONS = st.builds("{}.{}.{}{}".format, NUMBERS, NUMBERS, NUMBERS, STAGES)
BUILDS = st.from_regex(r"\+[0-9A-Za-z]([0-9A-Za-z-]{0,4})(\.[0-9A-Za-z-]{1,4}){0,2}", fullmatch=True)


@given(VERSIONS, VERSIONS)
def test_pip_orders_versions_as_semver_does(one: str, other: str) -> None:
    ours = SemVer.parse(one).compare(other)
    theirs = (Version(pep440(one)) > Version(pep440(other))) - (Version(pep440(one)) < Version(pep440(other)))
    assert ours == theirs


@given(VERSIONS, BUILDS)
def test_every_build_metadata_is_a_local_version_in_its_normal_form(version: str, build: str) -> None:
    spelled = pep440(version + build)
    assert str(Version(spelled)) == spelled
    assert Version(spelled).public == pep440(version)
    assert Version(spelled).local


@settings(max_examples=200)
@given(st.from_regex(NAME_RULE, fullmatch=True).filter(lambda name: ".." not in name), VERSIONS)
@example("3d.sample-net", "1.2.3-rc.1")
@example("a-", "1.0.0")
@example("a._-b", "1.0.0")
def test_names_are_normal_and_can_be_imported(name: str, version: str) -> None:
    project, module = project_name(name), module_name(name)
    assert canonicalize_name(project, validate=True) == project
    assert project.endswith("-edge")
    assert module.isidentifier()
    file = f"{project.replace('-', '_')}-{pep440(version)}-py3-none-any.whl"
    parsed, number, build, tags = parse_wheel_filename(file)
    assert (parsed, str(number), build, [str(tag) for tag in tags]) == (
        project,
        pep440(version),
        (),
        ["py3-none-any"],
    )


def test_names_as_people_see_them() -> None:
    assert (project_name("digits-cnn"), module_name("digits-cnn")) == ("digits-cnn-edge", "digits_cnn_edge")
    assert (project_name("3d.net"), module_name("3d.net")) == ("3d-net-edge", "model_3d_net_edge")


# --- what lies in it -------------------------------------------------------------------------------------


def test_holds_what_runs_and_proves_the_model_and_nothing_else(wheel: Wheel, pi_bundle: Path) -> None:
    assert wheel.file == "tiny_edge-1.0.0-py3-none-any.whl"
    golden = [
        f"tiny_edge/golden/{number}/{name}"
        for number in range(2)
        for name in ("input.image.npy", "raw.image.png", "reference.logits.npy", "tiny-float32.logits.npy")
    ]
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted([
            "tiny_edge-1.0.0.dist-info/METADATA",
            "tiny_edge-1.0.0.dist-info/RECORD",
            "tiny_edge-1.0.0.dist-info/WHEEL",
            "tiny_edge-1.0.0.dist-info/entry_points.txt",
            "tiny_edge/__init__.py",
            "tiny_edge/__main__.py",
            "tiny_edge/run.py",
            "tiny_edge/models.json",
            "tiny_edge/preprocess.json",
            "tiny_edge/models/tiny-float32.onnx",
            "tiny_edge/models/tiny-float32.tflite",
            "tiny_edge/measured/pi5-0123456789ab.json",
            "tiny_edge/golden/golden.json",
            *golden,
        ])  # fmt: skip
        for name in ("run.py", "models.json", "models/tiny-float32.onnx", "golden/0/raw.image.png"):
            assert archive.read(f"tiny_edge/{name}") == (pi_bundle / name).read_bytes()
    assert SECRET not in wheel.content


def test_the_record_has_every_file_with_its_digest(wheel: Wheel) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        rows = list(csv.reader(archive.read("tiny_edge-1.0.0.dist-info/RECORD").decode().splitlines()))
        assert sorted(row[0] for row in rows) == archive.namelist()
        for name, digest, size in rows:
            if name.endswith("/RECORD"):
                assert (digest, size) == ("", "")
                continue
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={expected}", str(len(content)))


def test_the_metadata_is_sound_and_says_what_is_needed(wheel: Wheel) -> None:
    told = Metadata.from_email(wheel.metadata, validate=True)
    assert (told.name, str(told.version), str(told.requires_python)) == ("tiny-edge", "1.0.0", ">=3.11")
    assert list(map(str, told.requires_dist or ())) == [
        "numpy",
        "pillow",
        'onnxruntime; extra == "onnxruntime"',
        'ai-edge-litert; extra == "litert"',
    ]
    assert told.provides_extra == ["onnxruntime", "litert"]
    assert told.description_content_type == "text/markdown"
    assert "from tiny_edge import Model" in (told.description or "")
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        assert archive.read("tiny_edge-1.0.0.dist-info/METADATA") == wheel.metadata
        assert archive.read("tiny_edge-1.0.0.dist-info/entry_points.txt") == (
            b"[console_scripts]\ntiny-edge = tiny_edge.run:command\n"
        )
        head = BytesParser().parsebytes(archive.read("tiny_edge-1.0.0.dist-info/WHEEL"))
    assert dict(head) == {
        "Wheel-Version": "1.0",
        "Generator": "edge-exporter",
        "Root-Is-Purelib": "true",
        "Tag": "py3-none-any",
    }


def test_a_bundle_for_one_runtime_offers_no_other_and_tensors_need_no_pillow(pi_bundle: Path) -> None:
    models = json.loads((pi_bundle / "models.json").read_text())
    models["models"] = [entry for entry in models["models"] if entry["file"].endswith(".tflite")]
    (pi_bundle / "models.json").write_text(json.dumps(models))
    document = json.loads((pi_bundle / "preprocess.json").read_text()) | {"contract": {"kind": "identity"}}
    (pi_bundle / "preprocess.json").write_text(json.dumps(document))

    wheel = make_wheel(read_bundle(with_manifest(pi_bundle)))

    told = Metadata.from_email(wheel.metadata, validate=True)
    assert list(map(str, told.requires_dist or ())) == ["numpy", 'ai-edge-litert; extra == "litert"']
    assert wheel.extras == ("litert",)
    assert b"tiny-float32.onnx" not in zipfile_names(wheel)


def zipfile_names(wheel: Wheel) -> bytes:
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        return "\n".join(archive.namelist()).encode()


def test_a_bundle_of_an_older_tool_is_told_to_be_built_again(pi_bundle: Path) -> None:
    script = pi_bundle / "run.py"
    script.write_text(script.read_text().replace("API_VERSION = 1\n", ""))
    with pytest.raises(
        UnsupportedError, match=r"run\.py has no interface that a wheel could offer"
    ) as caught:
        make_wheel(read_bundle(with_manifest(pi_bundle)))
    assert "build the bundle again" in caught.value.fix


# --- determinism -----------------------------------------------------------------------------------------


PACKING = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[3], 8))
from targets.discovery import get_target
from targets.packaging.base import PackRequest, read_bundle
get_target("raspberry-pi").pack(PackRequest(read_bundle(Path(sys.argv[1])), Path(sys.argv[2])))
"""


def test_the_same_bundle_gives_the_same_packages_anywhere(pi_bundle: Path, tmp_path: Path) -> None:
    with_manifest(pi_bundle)
    trees = []
    for number, (zone, seed, umask, mode) in enumerate(
        [("UTC", "1", "022", 0o644), ("Asia/Kathmandu", "2", "077", 0o600)]
    ):
        copy, out = tmp_path / f"copy{number}" / ("deeper" * number), tmp_path / f"out{number}"
        shutil.copytree(pi_bundle, copy, copy_function=shutil.copyfile)
        for path in copy.rglob("*"):
            os.utime(path, (number * 10**9, number * 10**9))
            if path.is_file():
                path.chmod(mode)
        out.mkdir()
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "LC_ALL": "C"}
        subprocess.run(
            [sys.executable, "-c", PACKING, str(copy), str(out), umask],
            env=environment, cwd=Path(__file__).parents[3], check=True, timeout=120,
        )  # fmt: skip
        trees.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert trees[0] == trees[1]
    assert len(trees[0]) == 3
    for content in trees[0].values():
        assert str(tmp_path).encode() not in content


def test_packages_say_what_to_paste(pi_bundle: Path, tmp_path: Path) -> None:
    with_manifest(pi_bundle, version="1.0.0-rc.1+ab.2")
    wheel, tarball = (item.package for item in pack(pi_bundle, tmp_path / "registry"))
    path = "simple/tiny-edge/tiny_edge-1.0.0rc1+ab.2-py3-none-any.whl"
    digest = hashlib.sha256((tmp_path / "registry" / path).read_bytes()).hexdigest()

    assert (wheel.ecosystem, wheel.name, wheel.version) == ("pip", "tiny-edge", "1.0.0rc1+ab.2")
    assert wheel.files == (f"{path}.metadata", path)
    assert wheel.lines == (
        f'pip install "tiny-edge[onnxruntime] @ {{registry}}/{path.replace("+", "%2B")}#sha256={digest}"',
        'pip install "tiny-edge[onnxruntime]==1.0.0rc1+ab.2" --extra-index-url {registry}/simple/',
    )
    assert (tarball.ecosystem, tarball.name, tarball.version) == ("files", "tiny", "1.0.0-rc.1+ab.2")
    root = "tiny-1.0.0-rc.1+ab.2-raspberry-pi"
    assert tarball.files == (f"files/tiny/1.0.0-rc.1+ab.2/{root}.tar.gz",)
    assert tarball.lines == (
        f"curl -fsSL {{registry}}/{tarball.files[0].replace('+', '%2B')} | tar xz && {root}/run.py",
    )

"""The Maven repository: layout, POM, checksums and listing, and Maven's own order of versions."""

from __future__ import annotations

import hashlib
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import MappingProxyType

import pytest
from android_ground import needs_java, run

from exporter.errors import UnsupportedError
from targets.android import maven
from targets.android.maven import Coordinates, Project
from targets.packaging.base import Ecosystem, Package, Published

OWN = Coordinates("edge.models", "tiny-onnx", "1.0.0-rc.1", "aar")
RUNTIME = Coordinates("com.example", "runtime", "2.0", "aar")
PROJECT = Project(OWN, "tiny & co", "<what> it is", (RUNTIME,), {".aar": b"aar", "-sources.jar": b"jar"})
BASE = "maven/edge/models/tiny-onnx/1.0.0-rc.1/tiny-onnx-1.0.0-rc.1"
MAVEN = (Path("/usr/share/maven/lib/maven-artifact-3.x.jar"), Path("/usr/share/maven/lib/commons-lang3.jar"))


def test_files_lie_where_maven_looks_and_the_pom_is_published_last(tmp_path: Path) -> None:
    package = maven.write(PROJECT, ("line",), tmp_path)

    contents = {".aar": b"aar", "-sources.jar": b"jar", ".pom": maven.pom(PROJECT)}
    checksums = [f"{BASE}{ending}.{name}" for ending in contents for name in maven.CHECKSUMS]
    assert package.files == (*checksums, *(f"{BASE}{ending}" for ending in contents))
    assert (package.name, package.version, package.lines) == (
        "edge.models:tiny-onnx",
        "1.0.0-rc.1",
        ("line",),
    )
    for ending, content in contents.items():
        assert (tmp_path / f"{BASE}{ending}").read_bytes() == content
        for name in maven.CHECKSUMS:
            assert (tmp_path / f"{BASE}{ending}.{name}").read_text() == hashlib.new(name, content).hexdigest()


def test_the_pom_says_what_is_needed_to_run() -> None:
    space = "{http://maven.apache.org/POM/4.0.0}"
    root = ET.fromstring(maven.pom(PROJECT))

    plain = {item.tag.removeprefix(space): item.text for item in root if not len(item)}
    assert plain == {
        "modelVersion": "4.0.0",
        "groupId": "edge.models",
        "artifactId": "tiny-onnx",
        "version": "1.0.0-rc.1",
        "packaging": "aar",
        "name": "tiny & co",
        "description": "<what> it is",
    }
    (needed,) = root.iter(f"{space}dependency")
    assert {item.tag.removeprefix(space): item.text for item in needed} == {
        "groupId": "com.example",
        "artifactId": "runtime",
        "version": "2.0",
        "type": "aar",
        "scope": "compile",
    }


@pytest.mark.parametrize("version", ["1.0.0-SNAPSHOT", "1.0.0-snapshot", "1.0.0-20260101.120000-1"])
def test_a_version_that_maven_takes_for_a_changing_one_is_refused(version: str, tmp_path: Path) -> None:
    project = Project(Coordinates("a", "b", version), "", "", (), {})
    with pytest.raises(UnsupportedError, match="for a snapshot, which may change any time"):
        maven.write(project, (), tmp_path)
    assert list(tmp_path.iterdir()) == []


def published(*versions: str, artifact: str = "tiny") -> list[Published]:
    facts = MappingProxyType({"group": "edge.models", "artifact": artifact})
    name = f"edge.models:{artifact}"
    return [Published(Package(Ecosystem.MAVEN, name, version, (), (), facts), {}, {}) for version in versions]


@pytest.mark.parametrize(
    ("versions", "latest", "release"),
    [
        (["1.0.0"], "1.0.0", "1.0.0"),
        (["1.10.0", "1.2.0", "1.9.0"], "1.10.0", "1.10.0"),
        (["1.0.0", "1.1.0-rc.1"], "1.1.0-rc.1", "1.0.0"),
        (["1.0.0-beta.2", "1.0.0-beta.10"], "1.0.0-beta.10", "1.0.0-beta.10"),
        (["1.0.0+a-b", "0.9.0"], "1.0.0+a-b", "1.0.0+a-b"),
        (["1.0.0", "1.0.0-dev.1", "1.0.0-1", "1.0.0-DEV.1"], "1.0.0", "1.0.0"),
        (["1.0.0+b", "1.0.0", "1.0.0+a"], "1.0.0+b", "1.0.0+b"),
    ],
)
def test_the_listing_knows_the_latest_and_the_last_release(
    versions: list[str], latest: str, release: str
) -> None:
    path = "maven/edge/models/tiny/maven-metadata.xml"
    files = maven.view(published(*versions))

    root = ET.fromstring(files[path])
    assert [root.findtext(f"versioning/{name}") for name in ("latest", "release")] == [latest, release]
    assert sorted(item.text or "" for item in root.iter("version")) == sorted(versions)
    assert sorted(files) == sorted([path, *(f"{path}.{name}" for name in maven.CHECKSUMS)])
    for name in maven.CHECKSUMS:
        assert files[f"{path}.{name}"].decode() == hashlib.new(name, files[path]).hexdigest()
    assert b"lastUpdated" not in files[path]


def test_the_listing_depends_on_what_is_published_alone() -> None:
    items = published("1.0.0", "2.0.0", "1.5.0") + published("0.1.0", artifact="other")

    assert maven.view(items) == maven.view(items[::-1]) == maven.view([*items, items[0]])
    assert len(maven.view(items)) == 2 * 5
    assert maven.view([]) == {}


@needs_java
@pytest.mark.skipif(not MAVEN[0].exists(), reason="no Maven; fix: apt-get install maven")
def test_ordinary_versions_are_ordered_as_maven_orders_them() -> None:
    picked = random.Random(3)

    def version() -> str:
        text = ".".join(str(picked.choice([0, 1, 2, 10])) for _ in range(3))
        if picked.random() < 0.6:
            text += f"-{picked.choice(['alpha', 'beta', 'rc'])}"
            if picked.random() < 0.2:
                return text  # with a build at once after the word Maven would read another word
            text += f".{picked.choice([1, 2, 10, 11])}"
        return text + (f"+{picked.choice(['b', '1', 'x2.1'])}" if picked.random() < 0.3 else "")

    items = published(*(version() for _ in range(1500)))
    listed = ET.fromstring(maven.view(items)["maven/edge/models/tiny/maven-metadata.xml"])
    versions = [item.text or "" for item in listed.iter("version")]
    assert len(versions) > 500
    said = run(
        "java",
        "-cp",
        ":".join(map(str, MAVEN)),
        "org.apache.maven.artifact.versioning.ComparableVersion",
        *versions,
    )
    signs = re.findall(r"^   .* (<|>|==) .*$", said, re.MULTILINE)
    assert len(signs) == len(versions) - 1
    assert set(signs) <= {"<", "=="}

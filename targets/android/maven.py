"""A Maven repository: where an artifact's files lie, its POM, its checksums, and the listing of its versions.

Gradle and Maven read the same layout. What is published of a version never changes; `maven-metadata.xml` is the view.
Specification: https://maven.apache.org/repositories/layout.html and …/repositories/metadata.html.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from xml.sax.saxutils import escape

from semver import Version

from exporter.errors import UnsupportedError
from exporter.system.files import write_bytes
from targets.packaging.base import Ecosystem, Package, Published

CHECKSUMS = ("md5", "sha1", "sha256", "sha512")
_SNAPSHOT = re.compile(r".*(SNAPSHOT|-[0-9]{8}\.[0-9]{6}-[0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """What a build file calls a library: `group:artifact:version`, and the kind of file that it is."""

    group: str
    artifact: str
    version: str
    packaging: str = "jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def folder(self) -> str:
        """The folder of all versions, relative to the registry's root."""
        return f"maven/{self.group.replace('.', '/')}/{self.artifact}"

    def path(self, ending: str) -> str:
        """Return the path of one file; `ending` is `.aar`, `.pom`, `-sources.jar`, …"""
        return f"{self.folder}/{self.version}/{self.artifact}-{self.version}{ending}"


@dataclass(frozen=True, slots=True)
class Project:
    """A library to publish: what people read of it, what it needs, and its files by their endings (`.aar`, …)."""

    coordinates: Coordinates
    title: str
    description: str
    dependencies: tuple[Coordinates, ...]
    files: Mapping[str, bytes]


def write(project: Project, lines: tuple[str, ...], destination: Path) -> Package:
    """Write the files of `project` below `destination` and return the package, its POM last.

    Raises `UnsupportedError` for a version that Maven takes for one that changes.
    """
    coordinates = project.coordinates
    if _SNAPSHOT.fullmatch(coordinates.version):
        raise UnsupportedError(
            f"Maven takes version {coordinates.version} for a snapshot, which may change any time",
            fix="call a prerelease something else, for example 1.2.0-rc.1",
        )
    contents = {coordinates.path(ending): content for ending, content in project.files.items()}
    contents[coordinates.path(".pom")] = pom(project)
    written = {**_with_checksums(contents), **contents}
    for path, content in written.items():
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(destination / path, content)
    return Package(
        ecosystem=Ecosystem.MAVEN,
        name=f"{coordinates.group}:{coordinates.artifact}",
        version=coordinates.version,
        lines=lines,
        files=tuple(written),
        facts=MappingProxyType({"group": coordinates.group, "artifact": coordinates.artifact}),
    )


def pom(project: Project) -> bytes:
    """Return the project object model: coordinates, packaging, and dependencies of scope compile."""
    own = project.coordinates
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<project xmlns="http://maven.apache.org/POM/4.0.0" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"',
        '    xsi:schemaLocation="http://maven.apache.org/POM/4.0.0 https://maven.apache.org/xsd/maven-4.0.0.xsd">',
        "  <modelVersion>4.0.0</modelVersion>",
        *_elements(
            "  ",
            groupId=own.group,
            artifactId=own.artifact,
            version=own.version,
            packaging=own.packaging,
            name=project.title,
            description=project.description,
        ),
    ]
    if project.dependencies:
        lines.append("  <dependencies>")
        for needed in project.dependencies:
            lines.append("    <dependency>")
            lines += _elements(
                "      ", groupId=needed.group, artifactId=needed.artifact, version=needed.version
            )
            lines += _elements("      ", type=needed.packaging, scope="compile")
            lines.append("    </dependency>")
        lines.append("  </dependencies>")
    return "\n".join([*lines, "</project>", ""]).encode()


def view(published: Sequence[Published]) -> dict[str, bytes]:
    """Return `maven-metadata.xml`, with its checksums, for every artifact.

    Versions are in SemVer's order, as every other listing has them; of builds of one version the text decides. `latest` is
    the last of them, `release` the last that is no prerelease, or the last of all where every one is. Maven takes both as
    they stand. In a range it orders by rules of its own, which agree on numbers and on `-alpha.N`, `-beta.N` and `-rc.N`.
    """
    versions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in published:
        facts = item.package.facts
        versions[facts["group"], facts["artifact"]].add(item.package.version)
    files = {}
    for (group, artifact), known in sorted(versions.items()):
        path = f"{Coordinates(group, artifact, '').folder}/maven-metadata.xml"
        files[path] = _metadata(group, artifact, sorted(known, key=lambda text: (Version.parse(text), text)))
    return {**files, **_with_checksums(files)}


def _metadata(group: str, artifact: str, versions: Sequence[str]) -> bytes:
    released = [version for version in versions if "-" not in version.partition("+")[0]]
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        "<metadata>",
        *_elements("  ", groupId=group, artifactId=artifact),
        "  <versioning>",
        *_elements("    ", latest=versions[-1], release=(released or versions)[-1]),
        "    <versions>",
        *(line for version in versions for line in _elements("      ", version=version)),
        "    </versions>",
        "  </versioning>",
        "</metadata>",
        "",
    ]
    return "\n".join(lines).encode()


def _elements(indent: str, **texts: str) -> list[str]:
    return [f"{indent}<{name}>{escape(text)}</{name}>" for name, text in texts.items()]


def _with_checksums(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the checksum files of `contents`: bare hexadecimal digits, as Maven writes them."""
    return {
        f"{path}.{name}": hashlib.new(name, content, usedforsecurity=False).hexdigest().encode()
        for path, content in contents.items()
        for name in CHECKSUMS
    }

"""Swift packages: what SwiftPM clones from a git repository of plain files, and the same as a zip.

One package for each runtime, because SwiftPM clones a repository whole and fetches what it depends on; in it one product
for each artifact, whose model is a resource of that product's module alone. A `binaryTarget` is no place for a model: it
must hold an XCFramework or an artifact bundle, and neither may consist of resources only.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from semver import Version

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import IntegrityError
from exporter.system.files import sorted_files, write_bytes
from targets.documents import render
from targets.ios import swift
from targets.ios.git_repository import commit_of, references, require_tag
from targets.ios.swift import Family
from targets.ios.swift_models import type_of
from targets.packaging.base import Bundle, BundleModel, Ecosystem, Package, Published
from targets.packaging.zips import zip_of

_MACOS_BEHIND_IOS = 3
_LAST_SEPARATE_IOS = 18


@dataclass(frozen=True, slots=True)
class Member:
    """One artifact of a package: its module, and what `models.json` says of it."""

    module: str
    spec: ArtifactSpec
    model: BundleModel


@dataclass(frozen=True, slots=True)
class _Plan:
    """One package that a bundle makes: its name and its artifacts, preferred first."""

    bundle: Bundle
    family: Family
    name: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `Package.swift` reads: model and version, the package's name and modules, the oldest systems."""

    name: str
    version: str
    package: str
    contract_module: str
    golden_module: str
    tests_module: str
    members: tuple[Member, ...]
    needs_onnxruntime: bool
    ios: str
    macos: str


@dataclass(frozen=True, slots=True)
class Readme:
    """What the package's `README.md` reads; `classifies` says what its first artifact does."""

    name: str
    version: str
    golden_module: str
    members: tuple[Member, ...]
    needs_onnxruntime: bool
    classifies: bool


def pack(bundle: Bundle, destination: Path, *, minimum: str) -> tuple[Package, ...]:
    """Write the Swift packages of `bundle` for iOS `minimum` below `destination`, and return them.

    Raises `UnsupportedError` for a version that no git tag can spell, `IntegrityError` for a bundle without the Swift files
    that this version of the tool writes.
    """
    require_tag(bundle.version)
    return tuple(_pack(plan, destination, minimum) for plan in _plans(bundle))


def view(published: Sequence[Published]) -> dict[str, bytes]:
    """Return the references of every repository: a tag for each version, and a branch at the newest.

    The branch is at the highest version that is no prerelease, or at the highest of all where every one is.
    """
    repositories: dict[str, dict[str, str]] = defaultdict(dict)
    for item in published:
        facts = item.package.facts
        repositories[facts["repository"]][item.package.version] = facts["commit"]
    files: dict[str, bytes] = {}
    for repository, tags in sorted(repositories.items()):
        newest = max(tags, key=lambda text: _rank(Version.parse(text)))
        files |= {f"{repository}/{path}": content for path, content in references(tags, newest).items()}
    return files


def _rank(version: Version) -> tuple[bool, Version, str]:
    """Return what orders versions; build metadata has no precedence and decides between equals alone."""
    return not version.prerelease, version, version.build or ""


def _plans(bundle: Bundle) -> list[_Plan]:
    members = [
        Member(type_of(bundle.name, spec), spec, model)
        for model in bundle.models
        for spec in (ArtifactSpec.parse(model.artifact),)
    ]
    return [
        _Plan(
            bundle,
            family,
            swift.package_name(bundle.name, family),
            tuple(member for member in members if member.spec.format in family.formats),
        )
        for family in swift.families_of(member.spec for member in members)
    ]


def _pack(plan: _Plan, destination: Path, minimum: str) -> Package:
    bundle, name = plan.bundle, plan.name
    files = _package_files(plan, minimum)
    commit = commit_of(files, f"{name} {bundle.version}")
    repository = f"swift/{name}.git"
    archive = f"swift/{name}/{bundle.version}/{name}-{bundle.version}.zip"
    content = zip_of({f"{name}/{path}": content for path, content in files.items()})
    checksum = hashlib.sha256(content).hexdigest()
    written = {f"{repository}/{path}": content for path, content in commit.objects.items()}
    written |= {archive: content, f"{archive}.sha256": f"{checksum}  {Path(archive).name}\n".encode()}
    for path, content in written.items():
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(destination / path, content)
    return Package(
        ecosystem=Ecosystem.SWIFT,
        name=name,
        version=bundle.version,
        lines=(
            f'.package(url: "{{registry}}/{repository}", exact: "{bundle.version}"),',
            *(
                f'.product(name: "{member.module}", package: "{name}"),  // {member.model.told}'
                for member in plan.members
            ),
        ),
        files=tuple(written),
        facts=MappingProxyType({"repository": repository, "commit": commit.name, "checksum": checksum}),
    )


def _package_files(plan: _Plan, minimum: str) -> dict[str, bytes]:
    """Return the whole package, contents by path; the Swift files are the bundle's own."""
    bundle = plan.bundle
    contract = f"Sources/{swift.contract_module(bundle.name, plan.family)}"
    golden = f"Sources/{swift.golden_module(bundle.name, plan.family)}"
    tests = f"Tests/{swift.tests_module(bundle.name, plan.family)}"
    places = {
        path: f"{contract}/{Path(path).name}" for path in swift.contract_files(bundle.name, bundle.contract)
    }
    golden_file, tests_file = swift.golden_file(bundle.name), swift.tests_file(bundle.name, plan.family)
    places |= {
        golden_file: f"{golden}/{Path(golden_file).name}",
        tests_file: f"{tests}/{Path(tests_file).name}",
    }
    places |= _tree(bundle, "golden", f"{golden}/golden")
    for member in plan.members:
        source = swift.model_file(bundle.name, member.spec)
        places[source] = f"Sources/{member.module}/{Path(source).name}"
        file = member.model.file
        places |= _tree(bundle, f"models/{file}", f"Sources/{member.module}/Resources/{file}")
    files = {place: _read(bundle, path) for path, place in places.items()}
    files["Package.swift"] = _manifest(plan, minimum).encode()
    files["README.md"] = _readme(plan).encode()
    return files


def _tree(bundle: Bundle, path: str, place: str) -> dict[str, str]:
    """Return where every file of the bundle's file or folder `path` goes, by its path."""
    whole = bundle.folder / path
    if not whole.is_dir():
        return {path: place}
    below = [file.relative_to(whole).as_posix() for file in sorted_files(whole)]
    return {f"{path}/{name}": f"{place}/{name}" for name in below}


def _read(bundle: Bundle, path: str) -> bytes:
    try:
        return (bundle.folder / path).read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{bundle.folder} has no {path}, which its Swift package is made of",
            fix="build the bundle again with this version",
        ) from error


def _manifest(plan: _Plan, minimum: str) -> str:
    name, family = plan.bundle.name, plan.family
    facts = Manifest(
        name=name,
        version=plan.bundle.version,
        package=plan.name,
        contract_module=swift.contract_module(name, family),
        golden_module=swift.golden_module(name, family),
        tests_module=swift.tests_module(name, family),
        members=plan.members,
        needs_onnxruntime=_needs_onnxruntime(family),
        ios=_dotted(minimum),
        macos=macos_of(minimum),
    )
    return render("ios/Package.swift", facts)


def _needs_onnxruntime(family: Family) -> bool:
    return Format.MLPACKAGE not in family.formats


def _dotted(minimum: str) -> str:
    return minimum if "." in minimum else f"{minimum}.0"


def macos_of(minimum: str) -> str:
    """Return the macOS that came with iOS `minimum`: what the golden vectors can be replayed on without a phone.

    They were three numbers apart until iOS 18 (macOS 15), and are numbered alike from 26 on.
    """
    major, _, minor = _dotted(minimum).partition(".")
    behind = _MACOS_BEHIND_IOS if int(major) <= _LAST_SEPARATE_IOS else 0
    return f"{int(major) - behind}.{minor}"


def _readme(plan: _Plan) -> str:
    bundle = plan.bundle
    facts = Readme(
        name=bundle.name,
        version=bundle.version,
        golden_module=swift.golden_module(bundle.name, plan.family),
        members=plan.members,
        needs_onnxruntime=_needs_onnxruntime(plan.family),
        classifies=b"func classify(" in _read(bundle, swift.model_file(bundle.name, plan.members[0].spec)),
    )
    return render("ios/README.md", facts)

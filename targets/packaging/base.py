"""What an ecosystem's own client installs: the nouns that targets write and a registry publishes.

A package is a pure function of a bundle: the same bundle gives the same bytes, anywhere. What lists several packages
(Maven's metadata, pip's index, git's references) is a *view*: a pure function of all packages published so far.
Knows no registry, no network and no clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from exporter.artifacts import TensorSpec
from exporter.bundle.contract import read_contract
from exporter.bundle.manifest import read_manifest
from exporter.errors import IntegrityError

DOCUMENT_FORMAT = 1


class Ecosystem(StrEnum):
    """Who installs a package."""

    MAVEN = "maven"
    SWIFT = "swift"
    PIP = "pip"
    FILES = "files"


@dataclass(frozen=True, slots=True)
class Package:
    """One installable thing: immutable files at their places in a registry.

    `name` and `version` are spelled as the client spells them (`edge.models:digits`, `1.0.0rc1`). `lines` are what a
    user pastes, one after another, with `{registry}` for the registry's URL without a slash at its end. `files` are
    paths relative to the registry's root, in the order in which they are published: what a client asks for first comes
    last, so that a half-published package is no package. `facts` is what the ecosystem's view needs to know.
    """

    ecosystem: Ecosystem
    name: str
    version: str
    lines: tuple[str, ...]
    files: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Published:
    """A package with the SHA-256 (hex) and the size in bytes of each of its files, by path."""

    package: Package
    sha256: Mapping[str, str]
    sizes: Mapping[str, int]


View = Callable[[Sequence[Published]], dict[str, bytes]]
"""From all packages of one ecosystem to the files that list them, by path relative to the registry's root.

Pure: equal packages in any order give equal bytes, so that a registry can be checked by writing its views again.
"""


@dataclass(frozen=True, slots=True)
class BundleModel:
    """One artifact of a bundle, as `models.json` lists it; `file` is its name in `models/`."""

    file: str
    artifact: str
    runtimes: tuple[str, ...]
    size_bytes: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    companions: tuple[str, ...]

    @property
    def told(self) -> str:
        """What tells a person which of several artifacts to take: `tflite:static_wi8_ai8, 0.22 MB`."""
        return f"{self.artifact}, {self.size_bytes / 1e6:.2f} MB"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk, read: what a package is made of.

    `models` are preferred first, `contract` is the preprocessing contract (`{"kind": "identity"}` or an image's),
    `golden` the document `golden/golden.json`, `options` the keys of `[targets.NAME]` that the bundle was built with.
    """

    folder: Path
    name: str
    version: str
    target: str
    tool: str
    options: Mapping[str, Any]
    models: tuple[BundleModel, ...]
    contract: Mapping[str, Any]
    labels: tuple[str, ...]
    golden: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PackRequest:
    """What a target packs: a checked bundle, into the empty folder `destination` (the registry's root)."""

    bundle: Bundle
    destination: Path


@runtime_checkable
class Packs(Protocol):
    """A target that writes packages for ecosystems; one that does not is published as a bundle alone."""

    def pack(self, request: PackRequest) -> tuple[Package, ...]:
        """Write the packages of `request.bundle` below `request.destination` and return them."""


def read_bundle(folder: Path) -> Bundle:
    """Return the bundle in `folder`, whose files the caller has checked against its manifest.

    Raises `InputError` if it is no bundle, `IntegrityError` if its documents are not what a build writes.
    """
    manifest = read_manifest(folder)
    try:
        listing, golden = (_document(folder / name) for name in ("models.json", "golden/golden.json"))
        preparing = read_contract(folder)
        return Bundle(
            folder=folder,
            name=str(manifest["name"]),
            version=str(manifest["version"]),
            target=str(manifest["target"]),
            tool=str(manifest["tool"]),
            options=dict(manifest.get("options", {})),
            models=tuple(_model(entry) for entry in listing["models"]),
            contract=dict(preparing.contract),
            labels=preparing.labels,
            golden=golden,
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"{folder} is no bundle that can be packed ({type(error).__name__}: {error})",
            fix="name one target's folder of a build, or build it again",
        ) from error


def _document(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document["format"] != DOCUMENT_FORMAT:
        raise ValueError(f"{path.name} has format {document['format']!r}, this tool reads {DOCUMENT_FORMAT}")
    return document


def _model(entry: Mapping[str, Any]) -> BundleModel:
    for name in (entry["file"], *entry["companions"]):
        if name in {"", ".", ".."} or "/" in name or "\\" in name:
            raise ValueError(f"models.json names {name!r}, outside models/")
    return BundleModel(
        file=str(entry["file"]),
        artifact=str(entry["artifact"]),
        runtimes=tuple(map(str, entry["runtimes"])),
        size_bytes=int(entry["size_bytes"]),
        sha256=str(entry["sha256"]),
        inputs=_tensors(entry["inputs"]),
        outputs=_tensors(entry["outputs"]),
        companions=tuple(map(str, entry["companions"])),
    )


def _tensors(specs: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(s["name"]), str(s["dtype"]), tuple(s["shape"])) for s in specs)

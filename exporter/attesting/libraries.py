"""Which installed distributions a build stood on, by name and version."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import quote

from exporter.artifacts import Format
from exporter.system.converters.environment import versions_apart

TOOL = "edge-exporter"
_ONNX_TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")
_TOOLS_OF_FORMAT: Mapping[Format, tuple[str, ...]] = {
    Format.ONNX: _ONNX_TOOLS,
    Format.ORT: _ONNX_TOOLS,
    Format.TFLITE: ("ai-edge-litert", "litert-quantizer", "litert-torch", "numpy"),
    Format.MLPACKAGE: ("coremltools", "numpy"),
}


def purl(name: str, version: str | None = None) -> str:
    """Return the package URL of a distribution on PyPI, like `pkg:pypi/torch@2.13.0%2Bcpu`."""
    normal = _normal(name)
    return f"pkg:pypi/{normal}" if version is None else f"pkg:pypi/{normal}@{quote(version, safe='')}"


def makers_of(kind: Format, *, from_torch: bool, compressed_by: Collection[str]) -> dict[str, str]:
    """Return the distributions whose code decides the bytes of a file of `kind`, with their versions, by name.

    `compressed_by` are the methods of `[[compress]]` that the model went through before.
    """
    names = {TOOL, *_TOOLS_OF_FORMAT[kind]}
    if from_torch:
        names.add("torch")
    if compressed_by:
        names.add("accelerate")
    if "prune" in compressed_by:
        names.add("torch-pruning")
    apart = versions_apart(kind)
    return {**_versions(names), **{name: apart[name] for name in sorted(names) if name in apart}}


def taking_part(kinds: Iterable[Format]) -> tuple[tuple[str, str], ...]:
    """Return every installed distribution that a build of files of `kinds` may have used: names with versions, sorted.

    That is what the tool requires with the extras of these formats, what that requires in turn, what else this process
    has loaded (a factory brings libraries of its own), and what lies in a converter's own environment, where a name may
    have another version.
    """
    found: set[tuple[str, str]] = set()
    extras = set()
    for kind in kinds:
        if apart := versions_apart(kind):
            found |= apart.items()
        elif kind.extra is not None:
            extras.add(kind.extra)
    return tuple(sorted({*found, *_required(TOOL, extras).items(), *_loaded().items()}))


def _required(name: str, extras: Iterable[str]) -> dict[str, str]:
    """Return what is installed of everything that `name` with `extras` requires, itself included."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    asked: dict[str, frozenset[str]] = {}
    waiting = [(_normal(name), frozenset(extras))]
    while waiting:
        current, wanted = waiting.pop()
        if current in asked and wanted <= asked[current]:
            continue
        asked[current] = asked.get(current, frozenset()) | wanted
        try:
            distribution = importlib.metadata.distribution(current)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[current] = distribution.version
        for line in distribution.requires or ():
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in sorted({"", *asked[current]})]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((_normal(requirement.name), frozenset(requirement.extras)))
    return found


def _loaded() -> dict[str, str]:
    """Return the distributions of which this process has loaded a module."""
    owners = importlib.metadata.packages_distributions()
    modules = {name.partition(".")[0] for name in tuple(sys.modules)} - sys.stdlib_module_names
    return _versions({owner for module in modules for owner in owners.get(module, ())})


def _versions(names: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in sorted(map(_normal, names)):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

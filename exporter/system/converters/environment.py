"""A converter's own environment: where it is, whether it fits this one, and what it holds.

It lies inside the tool's environment and goes with it. Torch and the tool's own packages are not copied: it sees those of
the tool's environment through a folder of links, so that a program captured here is read there by the same torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import exporter
from exporter.artifacts import Format
from exporter.errors import UnsupportedError
from exporter.system.converters.catalogue import Converter, converter_of
from exporter.system.files import digest

CONTENTS = "contents.json"
SHARED = "shared"


@dataclass(frozen=True, slots=True)
class ConverterEnvironment:
    """A finished environment of a converter; `versions` are those of every distribution in it, by name."""

    home: Path
    versions: Mapping[str, str]

    @property
    def python(self) -> Path:
        """The interpreter that converts."""
        return self.home / "bin" / "python"

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables under which it finds its own packages, and the tool as it runs here."""
        running = Path(exporter.__file__).resolve().parent
        linked = self.home / SHARED / running.name
        return {"PYTHONPATH": "" if linked.resolve() == running else str(running.parent)}


def home_of(converter: Converter) -> Path:
    """Return the folder of `converter`'s own environment, which need not be there."""
    return Path(sys.prefix) / "share" / "edge-exporter" / "converters" / converter.extra


def pins_of(converter: Converter) -> Path:
    """Return the requirements file with the exact versions that `converter` is tested with."""
    return Path(__file__).with_name(f"{converter.extra}.txt")


def conditions_of(converter: Converter) -> dict[str, str]:
    """Return what an environment of `converter` must have been made for to fit this one."""
    return {"torch": importlib.metadata.version("torch"), "pins": digest(pins_of(converter))}


def own_environment(kind: Format) -> ConverterEnvironment | None:
    """Return the own environment of the converter that writes `kind`; `None` if it has none.

    Raises `UnsupportedError` (12) if it has one that was made for another torch or by another release of the tool.
    """
    converter = converter_of(kind)
    if converter is None:
        return None
    home = home_of(converter)
    try:
        contents = json.loads((home / CONTENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    conditions = conditions_of(converter)
    if contents["made_for"] != conditions:
        raise UnsupportedError(
            f"the {converter.extra} converter's environment was made for torch {contents['made_for']['torch']} by another "
            f"release, or for another torch than {conditions['torch']}",
            fix=f"run: edge-export setup {converter.extra}",
        )
    return ConverterEnvironment(home, contents["versions"])


def missing_for(kind: Format) -> UnsupportedError | None:
    """Return what to raise of a format whose libraries are not there; `None` if they are, here or in an own environment."""
    converter = converter_of(kind)
    if converter is None:
        return None
    try:
        own = own_environment(kind)
    except UnsupportedError as error:
        return error
    wanted = converter.modules_here if own is not None else (*converter.modules, *converter.modules_here)
    missing = [module for module in wanted if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    fix = (
        f"run: pip install 'edge-exporter[{converter.extra_here}]'"
        if own is not None
        else f"run: pip install 'edge-exporter[{converter.extra}]', or: edge-export setup {converter.extra}"
    )
    return UnsupportedError(f".{kind} files need {', '.join(missing)}, which is not installed", fix=fix)


def versions_apart(kind: Format) -> Mapping[str, str]:
    """Return what is installed in the own environment of the converter that writes `kind`; empty if it has none."""
    own = own_environment(kind)
    return {} if own is None else own.versions


def version_of(distribution: str) -> str:
    """Return the version of a distribution, of a converter's where it converts, or "absent"."""
    for kind in Format:
        converter = converter_of(kind)
        if converter is not None and distribution in converter.distributions:
            found = versions_apart(kind).get(distribution)
            if found is not None:
                return found
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"

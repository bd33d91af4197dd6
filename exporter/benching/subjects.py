"""What is measured together: a bundle's own files, those of another bundle, and float twins of int8 files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from exporter.artifacts import Format
from exporter.bundle.golden import read_array
from exporter.bundle.manifest import check_manifest, read_manifest
from exporter.errors import UsageError
from exporter.jobs.replay import BundleEntry, read_golden, read_versions
from exporter.system.files import sorted_files
from targets.devices.base import Parcel

FLOAT_BITS = 16
"""Weights of this many bits and more are float."""


class Role(StrEnum):
    """Whose a measured file is."""

    OWN = "own"
    AGAINST = "against"
    FLOAT_TWIN = "float"


@dataclass(frozen=True, slots=True)
class Subject:
    """One file to measure. Twins have no recorded answers, and so no tolerance."""

    role: Role
    entry: BundleEntry
    folder: Path
    """Holds the model."""
    golden: Path
    samples: Sequence[Mapping[str, Any]]
    tolerance: float | None
    built_with: str | None
    """The version of the runtime that it ran in when it was built."""

    @property
    def key(self) -> str:
        """What a device calls the file."""
        return self.entry.file if self.role is Role.OWN else f"{self.role}/{self.entry.file}"

    @property
    def source(self) -> Path:
        """The file itself."""
        return self.folder / self.entry.file

    def order(self) -> dict[str, Any]:
        """Return what the probe is told of it."""
        return {
            "file": self.key,
            "artifact": str(self.entry.spec),
            "format": self.entry.spec.format.value,
            "path": f"{self.role}/models/{self.entry.file}",
            "samples": [
                {"inputs": self._sent(sample["inputs"]), "outputs": self._sent(self._outputs(sample))}
                for sample in self.samples
            ],
        }

    def parcels(self) -> Iterator[Parcel]:
        """Yield the model, with its weights beside it, and its golden arrays."""
        for path in sorted_files(self.folder):
            if path.name == self.entry.file or path.name.startswith(f"{self.entry.file}."):
                yield Parcel(path, f"{self.role}/models/{path.relative_to(self.folder).as_posix()}")
        for sample in self.samples:
            for name in (*sample["inputs"].values(), *self._outputs(sample).values()):
                read_array(self.golden, name)  # refuses what is no array, or lies outside
                yield Parcel(self.golden / name, f"{self.role}/golden/{name}")

    def _outputs(self, sample: Mapping[str, Any]) -> Mapping[str, str]:
        recorded: Mapping[str, str] = sample["outputs"].get(self.entry.file, {})
        return {} if self.role is Role.FLOAT_TWIN else recorded

    def _sent(self, names: Mapping[str, str]) -> dict[str, str]:
        return {name: f"{self.role}/golden/{relative}" for name, relative in names.items()}


@dataclass(frozen=True, slots=True)
class Opened:
    """A bundle that was read and checked: what a device can run of it, and what runs on Apple systems only."""

    manifest: Mapping[str, Any]
    subjects: tuple[Subject, ...]
    elsewhere: tuple[BundleEntry, ...]


def open_bundle(bundle: Path, role: Role, wanted: Sequence[str]) -> Opened:
    """Return the files of `bundle`, those in `wanted` by name or artifact (empty: all).

    Raises `IntegrityError` (19) if a file is not what was recorded, `UsageError` (2) for a name it does not have.
    """
    manifest = read_manifest(bundle)
    check_manifest(bundle)
    entries, tolerances, samples = read_golden(bundle, manifest)
    built_with = read_versions(bundle)
    for name in wanted:
        if not any(name in {entry.file, str(entry.spec)} for entry in entries):
            raise UsageError(
                f"the bundle has no artifact {name!r}",
                fix=f"use one of {', '.join(str(entry.spec) for entry in entries)}",
            )
    chosen = [entry for entry in entries if not wanted or {entry.file, str(entry.spec)} & set(wanted)]
    subjects = tuple(
        Subject(
            role,
            entry,
            bundle / "models",
            bundle / "golden",
            samples,
            tolerances.get(entry.file),
            built_with.get(str(entry.spec)),
        )
        for entry in chosen
        if entry.spec.format is not Format.MLPACKAGE
    )
    return Opened(
        manifest, subjects, tuple(entry for entry in chosen if entry.spec.format is Format.MLPACKAGE)
    )


def all_parcels(subjects: Sequence[Subject]) -> list[Parcel]:
    """Return what `subjects` need, each file once."""
    found = {parcel.path: parcel for subject in subjects for parcel in subject.parcels()}
    return list(found.values())

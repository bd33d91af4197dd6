"""Bundle → figures: every number of it that can be held against a budget, a lock or another bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.bundle.manifest import MANIFEST_NAME, listed_bytes, read_manifest
from exporter.bundle.measured import read_measured
from exporter.errors import InputError, IntegrityError


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of figure: its unit, which way is better, and how much worse still passes.

    `allowance` is a share of the locked figure, or an absolute amount where `is_absolute`.
    """

    unit: str
    is_larger_better: bool
    allowance: float
    is_absolute: bool = False


KINDS: Mapping[str, Kind] = {
    "size_mb": Kind("MB", False, 0.01),
    "metric": Kind("", True, 0.005, is_absolute=True),
    "agreement": Kind("of samples", True, 0.005, is_absolute=True),
    "sqnr_db": Kind("dB", True, 0.5, is_absolute=True),
    "p50_ms": Kind("ms", False, 0.10),
    "p90_ms": Kind("ms", False, 0.15),
    "rss_mb": Kind("MB", False, 0.10),
    "instructions_m": Kind("M", False, 0.01),
}
"""In the order in which they are shown."""

Key = tuple[str, str | None, str]
"""Artifact, device or None, and kind."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device that measured the bundle: where it was, and what it found best and wrong."""

    place: str
    best: str | None
    """The artifact that is fastest there, or executes the fewest instructions."""
    wrong: tuple[str, ...]
    """Artifacts whose answers there were out of tolerance."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one bundle; `noise` is each time's own spread as a share of it."""

    bundle: Path
    name: str
    version: str
    values: Mapping[Key, float]
    noise: Mapping[Key, float]
    devices: Mapping[str, DeviceFacts]
    budget: Mapping[str, float]


def bundles_in(paths: Sequence[Path]) -> list[Path]:
    """Return the bundles that `paths` name: bundles themselves, or builds for all of their targets.

    Raises `InputError` (10) for a folder that is neither.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(item.parent for item in path.glob(f"*/{MANIFEST_NAME}"))
        found += inside or [path]
        if not inside and not (path / MANIFEST_NAME).is_file():
            raise InputError(
                f"{path} is no bundle and no build: it has no {MANIFEST_NAME}",
                fix="name a folder below edge-build/NAME/VERSION",
            )
    return list(dict.fromkeys(found))


def read_figures(bundle: Path) -> Figures:
    """Return the figures of `bundle`: its files' sizes, its evidence, and what devices measured of it.

    Raises what `read_manifest` raises, and `IntegrityError` (19) if its documents do not say what they must.
    """
    manifest, measured = read_manifest(bundle), read_measured(bundle)
    try:
        evidence = json.loads((bundle / "evidence.json").read_text(encoding="utf-8"))
        values = dict(_of_build(manifest, evidence))
        noise: dict[Key, float] = {}
        devices = {}
        for device, record in measured.items():
            devices[device] = _device(record)
            for item in _best_of_each(record["measurements"]):
                for key, value in _of_device(item):
                    values[str(item["artifact"]), device, key] = value
                    if key.endswith("_ms"):
                        noise[str(item["artifact"]), device, key] = float(item["noise"] or 0.0)
        return Figures(
            bundle,
            f"{manifest['name']}/{manifest['target']}",
            str(manifest["version"]),
            values,
            noise,
            devices,
            {str(key): float(value) for key, value in manifest.get("budget", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{bundle}: its documents do not give its figures ({type(error).__name__}: {error})",
            fix="name one target's folder, or build the bundle again",
        ) from error


def _of_build(
    manifest: Mapping[str, Any], evidence: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Key, float]]:
    for entry in manifest["artifacts"]:
        yield (entry["artifact"], None, "size_mb"), listed_bytes(manifest, f"models/{entry['file']}") / 1e6
    for entry in evidence:
        artifact, task, fidelity = str(entry["artifact"]), entry["task"], entry["fidelity"]
        if task:
            yield (artifact, None, "metric"), float(task["value"])
        if fidelity:
            if fidelity["agreement"] is not None:
                yield (artifact, None, "agreement"), float(fidelity["agreement"])
            if fidelity["sqnr_db"] is not None:
                yield (artifact, None, "sqnr_db"), float(fidelity["sqnr_db"])


def _device(record: Mapping[str, Any]) -> DeviceFacts:
    best = min(_best_of_each(record["measurements"]), key=_cost, default=None)
    wrong = {item["artifact"] for item in record["measurements"] if item["parity"]["passed"] is False}
    return DeviceFacts(
        str(record["where"]), None if best is None else str(best["artifact"]), tuple(sorted(wrong))
    )


def _best_of_each(measurements: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the fastest measurement of each artifact over runtimes and threads; throttled ones have no figures."""
    best: dict[str, Mapping[str, Any]] = {}
    for item in measurements:
        known = best.get(item["artifact"])
        if _cost(item) != float("inf") and (known is None or _cost(item) < _cost(known)):
            best[item["artifact"]] = item
    return list(best.values())


def _cost(item: Mapping[str, Any]) -> float:
    figure = item["p50_ms"] if item["p50_ms"] is not None else item["instructions_m"]
    return float("inf") if figure is None else float(figure)


def _of_device(item: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    told = {
        "p50_ms": item["p50_ms"],
        "p90_ms": item["p90_ms"],
        "rss_mb": item["peak_rss_mb"],
        "instructions_m": item["instructions_m"],
    }
    yield from ((key, float(value)) for key, value in told.items() if value is not None)

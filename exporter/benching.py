"""Bundle × device → measurements: what each artifact takes there, and whether it answers as it did when built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exporter.artifacts import Format
from exporter.errors import DeviceError, GateError, UsageError
from exporter.files import size_bytes, sorted_files
from exporter.golden import read_array
from exporter.manifest import check_manifest, read_manifest
from exporter.progress import Progress
from exporter.replay import BundleEntry, read_golden, read_versions
from targets.devices import Device
from targets.devices.base import Parcel, converse
from targets.devices.results import Measurement, Results, Skipped

RESULT_FORMAT = 1
RUNTIMES = ("onnxruntime", "litert")
_BLOCKS = 5
_LEAST_RUNS = 3
_RETRIES = 3


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to measure: seconds for each file, runtime and number of threads; `files` by name or artifact (empty: all)."""

    threads: tuple[int, ...] = (1, 2, 4)
    duration_s: float = 10.0
    runtime: str | None = None
    files: tuple[str, ...] = ()
    cool_s: float = 20.0
    """Pause after a throttled block."""
    keep: bool = False
    """Whether the scratch folder stays on the device."""
    root: str = "/"
    """Where the device's own figures are read: another folder only in tests."""


def bench_bundle(bundle: Path, device: Device, wishes: Wishes, *, progress: Progress) -> dict[str, Any]:
    """Return what `device` measured of `bundle`, as `docs/devices.md` describes it.

    Raises what `converse` raises, `IntegrityError` (19) if a file is not what was recorded, `DeviceError` (18) if
    nothing could be measured, `GateError` (14) naming the artifact whose answers there are out of tolerance.
    """
    manifest = read_manifest(bundle)
    with progress.step("hashing files"):
        check_manifest(bundle)
    entries, tolerances, samples = read_golden(bundle, manifest)
    chosen = choose(entries, wishes.files)
    runnable = [entry for entry in chosen if entry.spec.format is not Format.MLPACKAGE]
    request = {
        "format": RESULT_FORMAT,
        "artifacts": [_artifact(entry, samples) for entry in runnable],
        "threads": sorted(set(wishes.threads)),
        "runtime": wishes.runtime,
        "blocks": _BLOCKS,
        "block_s": wishes.duration_s / _BLOCKS,
        "least_runs": _LEAST_RUNS,
        "retries": _RETRIES,
        "cool_s": wishes.cool_s,
        "keep": wishes.keep,
        "root": wishes.root,
    }
    with progress.step(f"measuring on {device.where}") as _:
        answer = converse(device, request, _parcels(bundle, runnable, samples), step=progress.say)
    results = _checked(device, answer, request, read_versions(bundle))
    return _report(bundle, manifest, device, results, chosen, tolerances)


def require_parity(report: Mapping[str, Any]) -> None:
    """Raise `GateError` (14) if any answer measured in `report` is out of tolerance."""
    wrong = [item for item in report["measurements"] if not item["parity"]["passed"]]
    if wrong:
        worst = wrong[0]
        error = worst["max_abs_error"]
        raise GateError(
            f"{worst['file']} answers the golden vectors on {report['where']} with an error of "
            f"{'NaN or infinity' if error is None else f'{error:.4g}'}, tolerance {worst['parity']['tolerance']:.4g} "
            f"({worst['runtime']} {worst['version']})",
            fix="do not ship it to this device: its runtime computes something else than the one that built it",
            details=dict(report),
        )


def choose(entries: Sequence[BundleEntry], wanted: Sequence[str]) -> list[BundleEntry]:
    """Return the entries that `wanted` names by file or artifact (none: all); `UsageError` for a name of nothing."""
    for name in wanted:
        if not any(name in {entry.file, str(entry.spec)} for entry in entries):
            raise UsageError(
                f"the bundle has no artifact {name!r}",
                fix=f"use one of {', '.join(str(entry.spec) for entry in entries)}",
            )
    return [entry for entry in entries if not wanted or {entry.file, str(entry.spec)} & set(wanted)]


def _artifact(entry: BundleEntry, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def sent(names: Mapping[str, str]) -> dict[str, str]:
        return {name: f"golden/{relative}" for name, relative in names.items()}

    return {
        "file": entry.file,
        "artifact": str(entry.spec),
        "format": entry.spec.format.value,
        "path": f"models/{entry.file}",
        "samples": [
            {"inputs": sent(sample["inputs"]), "outputs": sent(sample["outputs"].get(entry.file, {}))}
            for sample in samples
        ],
    }


def _parcels(
    bundle: Path, entries: Sequence[BundleEntry], samples: Sequence[Mapping[str, Any]]
) -> list[Parcel]:
    """Return what a device needs of the bundle: the models, with their weights beside them, and golden arrays."""
    names = {
        relative
        for sample in samples
        for arrays in (
            sample["inputs"],
            *(sample["outputs"].get(entry.file, {}) for entry in entries),
        )
        for relative in arrays.values()
    }
    for name in sorted(names):
        read_array(bundle / "golden", name)  # refuses what is no array, or lies outside
    models = [
        path
        for path in sorted_files(bundle / "models")
        if any(path.name == entry.file or path.name.startswith(f"{entry.file}.") for entry in entries)
    ]
    return [
        *(Parcel(path, f"models/{path.relative_to(bundle / 'models').as_posix()}") for path in models),
        *(Parcel(bundle / "golden" / name, f"golden/{name}") for name in sorted(names)),
    ]


def _checked(
    device: Device, answer: Mapping[str, Any], request: Mapping[str, Any], built_with: Mapping[str, str]
) -> Results:
    try:
        results = Results.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        raise DeviceError(
            f"{device.where} answered nonsense at {'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="the device or what stands between is not to be trusted; measure elsewhere",
        ) from error
    asked = {entry["file"] for entry in request["artifacts"]}
    if strange := {item.file for item in results.measurements} - asked:
        raise DeviceError(
            f"{device.where} answered of {min(strange)!r}, which nobody asked",
            fix="the device or what stands between is not to be trusted; measure elsewhere",
        )
    artifacts = {entry["file"]: entry["artifact"] for entry in request["artifacts"]}
    skipped = tuple(_told(item, built_with.get(artifacts.get(item.file, ""))) for item in results.skipped)
    results = results.model_copy(update={"skipped": skipped})
    if not results.measurements:
        reasons = "; ".join(dict.fromkeys(f"{item.file}: {item.why}" for item in results.skipped))
        raise DeviceError(
            f"{device.where} could run nothing of the bundle (Python {results.device.python}, "
            f"{results.device.machine}): {reasons or 'no artifact for its runtimes'}",
            fix="install onnxruntime or ai-edge-litert there (64-bit, Python 3.11 or newer), over ssh:// with "
            "--bootstrap, or name a Python that has them with --python",
        )
    return results


def _told(item: Skipped, built_with: str | None) -> Skipped:
    """Return `item` with its reason led by the runtime's version there and the one that the build used."""
    if item.version is None:
        return item
    built = f", built with {built_with}" if built_with and built_with != item.version else ""
    return item.model_copy(update={"why": f"{item.runtime} {item.version} there{built}: {item.why}"})


def _report(
    bundle: Path,
    manifest: Mapping[str, Any],
    device: Device,
    results: Results,
    chosen: Sequence[BundleEntry],
    tolerances: Mapping[str, float],
) -> dict[str, Any]:
    fastest = _fastest(results.measurements)
    fewest = min(
        (item for item in results.measurements if item.instructions_m is not None),
        key=lambda item: item.instructions_m or 0.0,
        default=None,
    )
    measurements = [
        {
            **item.model_dump(mode="json"),
            "sha256": manifest["files"][f"models/{item.file}"]["sha256"],
            "size_bytes": size_bytes(bundle / "models" / item.file),
            "parity": {
                "tolerance": tolerances[item.file],
                "passed": item.max_abs_error is not None and item.max_abs_error <= tolerances[item.file],
            },
        }
        for item in results.measurements
    ]
    skipped = [item.model_dump(mode="json") for item in results.skipped]
    skipped += [
        {"file": entry.file, "runtime": None, "why": "Core ML runs on Apple systems", "version": None}
        for entry in chosen
        if entry.spec.format is Format.MLPACKAGE
    ]
    return {
        "format": RESULT_FORMAT,
        "model": f"{manifest['name']} {manifest['version']}",
        "target": manifest["target"],
        "where": device.where,
        "device": results.device.model_dump(mode="json"),
        "measurements": measurements,
        "skipped": skipped,
        "kept": results.kept,
        "fastest": None
        if fastest is None
        else {"file": fastest.file, "runtime": fastest.runtime, "threads": fastest.threads},
        "fewest_instructions": None if fewest is None else {"file": fewest.file, "runtime": fewest.runtime},
    }


def _fastest(measurements: Sequence[Measurement]) -> Measurement | None:
    timed = [(item.p50_ms, item.threads, item) for item in measurements if item.p50_ms is not None]
    return min(timed, key=lambda each: each[:2])[2] if timed else None

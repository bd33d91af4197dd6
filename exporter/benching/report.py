"""Results of a device → the report of a bench: one schema for all places, and what follows from the figures."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from exporter.artifacts import Format
from exporter.benching.profile import layer_names, read_profile
from exporter.benching.subjects import FLOAT_BITS, Opened, Role, Subject
from exporter.system.files import digest, size_bytes
from targets.devices.results import Measurement, Results

RESULT_FORMAT = 1


def bench_report(
    where: str, own: Opened, other: Opened | None, subjects: Sequence[Subject], results: Results
) -> dict[str, Any]:
    """Return the report of one bench, as `docs/devices.md` describes it."""
    by_key = {subject.key: subject for subject in subjects}
    measured = _of_role(results, by_key, Role.OWN)
    fastest = _fastest(measured)
    fewest = min(
        (item for item in measured if item.instructions_m is not None),
        key=lambda item: item.instructions_m or 0.0,
        default=None,
    )
    skipped = [item.model_dump(mode="json") for item in results.skipped]
    skipped += [
        {"file": entry.file, "runtime": None, "version": None, "why": "Core ML runs on Apple systems"}
        for entry in own.elsewhere
    ]
    comparisons = _float_comparisons(measured, _of_role(results, by_key, Role.FLOAT_TWIN), by_key)
    report = {
        "format": RESULT_FORMAT,
        "model": f"{own.manifest['name']} {own.manifest['version']}",
        "target": own.manifest["target"],
        "where": where,
        "at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": results.device.model_dump(mode="json"),
        "measurements": [_measurement(item, by_key[item.file]) for item in measured],
        "skipped": skipped,
        "fastest": _named(fastest),
        "fewest_instructions": None if fewest is None else {"file": fewest.file, "runtime": fewest.runtime},
        "int8_against_float": comparisons,
        "profiles": _profiles(results, by_key),
        "kept": results.kept,
    }
    if other is not None:
        report["against"] = {
            "model": f"{other.manifest['name']} {other.manifest['version']}",
            "measurements": [
                _measurement(item, by_key[item.file]) for item in _of_role(results, by_key, Role.AGAINST)
            ],
        }
    return report


def _of_role(results: Results, by_key: dict[str, Subject], role: Role) -> list[Measurement]:
    return [item for item in results.measurements if by_key[item.file].role is role]


def _measurement(item: Measurement, subject: Subject) -> dict[str, Any]:
    tolerance = subject.tolerance or 0.0
    return {
        **item.model_dump(mode="json"),
        "file": subject.entry.file,
        "sha256": digest(subject.source),
        "size_bytes": size_bytes(subject.source),
        "parity": {
            "tolerance": tolerance,
            "passed": (item.max_abs_error is not None and item.max_abs_error <= tolerance)
            if item.checked
            else None,
        },
    }


def _fastest(measurements: Sequence[Measurement]) -> Measurement | None:
    """Return what is fastest by its median, or by its mean where a program tells no median."""
    timed = [
        (item.p50_ms if item.p50_ms is not None else item.mean_ms, item.threads, item)
        for item in measurements
        if item.p50_ms is not None or item.mean_ms is not None
    ]
    return min(timed, key=lambda each: (each[0] or 0.0, each[1]))[2] if timed else None


def _named(item: Measurement | None) -> dict[str, Any] | None:
    if item is None:
        return None
    return {"file": item.file, "artifact": item.artifact, "runtime": item.runtime, "threads": item.threads}


def _float_comparisons(
    measured: Sequence[Measurement], twins: Sequence[Measurement], by_key: dict[str, Subject]
) -> list[dict[str, Any]]:
    """Return, for each quantised file, the fastest float rival in the same runtime: the bundle's own, else its twin."""
    rows = []
    for file in dict.fromkeys(item.file for item in measured):
        subject = by_key[file]
        if subject.entry.spec.scheme.weight_bits >= FLOAT_BITS:
            continue
        own = _fastest([item for item in measured if item.file == file])
        if own is None or own.p50_ms is None:
            continue
        shipped = [
            item
            for item in measured
            if item.runtime == own.runtime and by_key[item.file].entry.spec.scheme.weight_bits >= FLOAT_BITS
        ]
        made = [item for item in twins if by_key[item.file].entry.file == file]
        rival = _fastest(shipped) or _fastest(made)
        if rival is None or rival.p50_ms is None:
            continue
        rows.append(
            {
                "file": file,
                "p50_ms": own.p50_ms,
                "float": rival.artifact if rival in shipped else None,
                "float_p50_ms": rival.p50_ms,
                "times_faster": rival.p50_ms / own.p50_ms if own.p50_ms else None,
            }
        )
    return rows


def _profiles(results: Results, by_key: dict[str, Subject]) -> list[dict[str, Any]]:
    twins = {
        by_key[item.file].entry.file: (item, layer_names(by_key[item.file].source))
        for item in results.profiles
        if by_key[item.file].role is Role.FLOAT_TWIN and item.why is None
    }
    found = []
    for item in results.profiles:
        subject = by_key[item.file]
        if subject.role is Role.OWN:
            is_onnx = subject.entry.spec.format is Format.ONNX
            found.append(
                read_profile(
                    item,
                    layer_names(subject.source) if is_onnx else {},
                    twins.get(item.file) if is_onnx else None,
                    is_quantized=subject.entry.spec.scheme.weight_bits < FLOAT_BITS,
                )
            )
    return found

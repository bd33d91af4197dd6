"""Bundle × device → measurements: what each artifact takes there, and whether it answers as it did when built."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exporter.artifacts import Format
from exporter.benching.report import RESULT_FORMAT, bench_report
from exporter.benching.subjects import FLOAT_BITS, Opened, Role, Subject, all_parcels, open_bundle
from exporter.errors import DeviceError, GateError, UsageError
from exporter.progress import Progress
from exporter.system.files import scratch_folder
from targets.devices import Instrument, Place
from targets.devices.base import measure
from targets.devices.results import Results, Skipped

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
    root: str = "/"
    """Where the device's own figures are read: another folder only in tests."""
    keep: bool = False
    """Whether the scratch folder stays on the device."""
    against: Path | None = None
    """Another bundle, whose same artifacts are timed in turns with this one's."""
    profile: bool = False
    """Also where the time goes; int8 `.onnx` files are then timed against their float twins."""


def bench_bundle(bundle: Path, device: Place, wishes: Wishes, *, progress: Progress) -> dict[str, Any]:
    """Return what `device` measured of `bundle`, as `docs/devices.md` describes it.

    Raises what `measure` raises, `IntegrityError` (19) if a file is not what was recorded, `DeviceError` (18) if
    nothing could be measured.
    """
    if wishes.profile and device.where.startswith("emulated"):
        raise UsageError(
            "--profile needs a clock, and an emulated core has none",
            fix="profile on local or on a board",
        )
    if (wishes.profile or wishes.keep) and isinstance(device, Instrument):
        raise UsageError(
            f"--{'profile' if wishes.profile else 'keep'} is nothing that the program of --benchmark can do",
            fix="leave one of them out",
        )
    with contextlib.ExitStack() as stack:
        with progress.step("hashing files"):
            own = open_bundle(bundle, Role.OWN, wishes.files)
            other = None if wishes.against is None else open_bundle(wishes.against, Role.AGAINST, ())
        subjects = [*own.subjects, *_rivals(own, other)]
        if wishes.profile:
            with progress.step("making float twins"):
                twins = stack.enter_context(scratch_folder("twins"))
                subjects += _twins(own.subjects, twins)
        request = _request(subjects, wishes)
        with progress.step(f"measuring on {device.where}"):
            answer = measure(device, request, all_parcels(subjects), progress.say)
        results = _checked(device, answer, {subject.key for subject in own.subjects}, subjects)
        return bench_report(device.where, own, other, subjects, results)


def require_parity(report: Mapping[str, Any]) -> None:
    """Raise `GateError` (14) if any answer measured in `report` is out of tolerance."""
    wrong = [item for item in report["measurements"] if item["parity"]["passed"] is False]
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


def _rivals(own: Opened, other: Opened | None) -> list[Subject]:
    """Return the files of the other bundle that this one has too; `UsageError` if there is none."""
    if other is None:
        return []
    mine = {subject.entry.spec for subject in own.subjects}
    shared = [subject for subject in other.subjects if subject.entry.spec in mine]
    if not shared:
        raise UsageError(
            "the two bundles share no artifact",
            fix=f"this one has {', '.join(map(str, mine))}; name a bundle of the same target with --against",
        )
    return shared


def _twins(subjects: Sequence[Subject], folder: Path) -> list[Subject]:
    from exporter.benching.float_twin import write_float_twin

    return [
        dataclasses.replace(subject, role=Role.FLOAT_TWIN, folder=folder, tolerance=None)
        for subject in subjects
        if subject.entry.spec.format is Format.ONNX
        and subject.entry.spec.scheme.weight_bits < FLOAT_BITS
        and write_float_twin(subject.source, folder / subject.entry.file)
    ]


def _request(subjects: Sequence[Subject], wishes: Wishes) -> dict[str, Any]:
    return {
        "format": RESULT_FORMAT,
        "artifacts": [subject.order() for subject in subjects],
        "threads": sorted(set(wishes.threads)),
        "runtime": wishes.runtime,
        "blocks": _BLOCKS,
        "block_s": wishes.duration_s / _BLOCKS,
        "least_runs": _LEAST_RUNS,
        "retries": _RETRIES,
        "cool_s": wishes.cool_s,
        "keep": wishes.keep,
        "root": wishes.root,
        "profile": wishes.profile,
    }


def _checked(device: Place, answer: Mapping[str, Any], own: set[str], subjects: Sequence[Subject]) -> Results:
    distrust = "the device or what stands between is not to be trusted; measure elsewhere"
    try:
        results = Results.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        raise DeviceError(
            f"{device.where} answered nonsense at {'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix=distrust,
        ) from error
    told = {item.file for item in results.measurements} | {item.file for item in results.profiles}
    if strange := told - {subject.key for subject in subjects}:
        raise DeviceError(f"{device.where} answered of {min(strange)!r}, which nobody asked", fix=distrust)
    skipped = tuple(_told(item, subjects) for item in results.skipped)
    results = results.model_copy(update={"skipped": skipped})
    if not any(item.file in own for item in results.measurements):
        reasons = "; ".join(dict.fromkeys(f"{item.file}: {item.why}" for item in results.skipped))
        raise DeviceError(
            f"{device.where} could run nothing of the bundle (Python {results.device.python}, "
            f"{results.device.machine}): {reasons or 'no artifact for its runtimes'}",
            fix="install onnxruntime or ai-edge-litert there (64-bit, Python 3.11 or newer), over ssh:// with "
            "--bootstrap, or name a Python that has them with --python",
        )
    return results


def _told(item: Skipped, subjects: Sequence[Subject]) -> Skipped:
    """Return `item` with its reason led by the runtime's version there and the one that the build used."""
    if item.version is None:
        return item
    built_with = next((subject.built_with for subject in subjects if subject.key == item.file), None)
    built = f", built with {built_with}" if built_with and built_with != item.version else ""
    return item.model_copy(update={"why": f"{item.runtime} {item.version} there{built}: {item.why}"})

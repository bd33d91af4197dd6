"""Replay a bundle: re-hash every file, prepare the golden pictures, run every artifact, compare the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import ArtifactSpec, Format
from exporter.bundle.contract import DOCUMENT_NAME, read_contract
from exporter.bundle.golden import read_array
from exporter.bundle.golden_inputs import read_golden_picture
from exporter.bundle.manifest import MANIFEST_NAME, check_manifest, read_manifest
from exporter.bundle.mistakes import name_mistake
from exporter.errors import GateError, IntegrityError, RecipeError, UsageError
from exporter.judging.metrics import compare_outputs
from exporter.progress import Progress
from exporter.runtimes.worker import read_samples, run_artifact, write_sample
from exporter.system.files import scratch_folder

_VERSION = re.compile(r"[0-9][0-9A-Za-z.]{0,40}")


def replay_bundle(bundle: Path, *, progress: Progress) -> dict[str, Any]:
    """Return what a replay of `bundle` found, for each artifact; see `docs/report.md` for the keys.

    Raises `InputError` (10) if the folder is no bundle, `IntegrityError` (19) if a file is not what was
    recorded, `GateError` (14) naming what went wrong before a picture became its tensor, or the artifact whose answers
    are out of tolerance.
    """
    manifest = read_manifest(bundle)
    with progress.step("hashing files"):
        hashed = check_manifest(bundle)
    entries, tolerances, samples = read_golden(bundle, manifest)
    preprocessing = _replay_pictures(bundle, samples)
    verdicts: list[dict[str, Any]] = []
    result = {
        "bundle": str(bundle),
        "target": manifest["target"],
        "model": f"{manifest['name']} {manifest['version']}",
        "files_hashed": hashed,
        "preprocessing": preprocessing,
        "artifacts": verdicts,
        "passed": False,
    }
    if preprocessing is not None and not preprocessing["passed"]:
        raise GateError(
            f"{bundle}: a golden picture is not prepared as in the build: {preprocessing['says']}",
            fix="install the Pillow that built it, or build the bundle again",
            details=result,
        )
    with progress.step("replaying golden vectors", len(entries)) as advance:
        for number, entry in enumerate(entries, start=1):
            verdicts.append(_replay(bundle, entry, samples, tolerances.get(entry.file)))
            advance(number)
    failed = [verdict for verdict in verdicts if verdict["passed"] is False]
    result["passed"] = not failed
    if failed:
        worst = failed[0]
        raise GateError(
            f"{bundle}/models/{worst['file']} answers the golden vectors with an error of "
            f"{worst['max_abs_error']:.4g}, tolerance {worst['tolerance']:.4g}",
            fix="do not ship it: this host's runtime differs from the one that built it, or the file is wrong",
            details=result,
        )
    return result


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """One artifact as the manifest lists it."""

    spec: ArtifactSpec
    file: str


def read_golden(
    bundle: Path, manifest: Mapping[str, Any]
) -> tuple[list[BundleEntry], dict[str, float], list[Mapping[str, Any]]]:
    """Return a bundle's artifacts, their tolerances by file, and its golden samples.

    Digests only say that these documents are what was written: they may have been written by anybody.
    """
    if not isinstance(manifest.get("artifacts"), list):
        there = sorted(path.parent.name for path in bundle.glob(f"*/{MANIFEST_NAME}"))
        if there:
            raise UsageError(
                f"{bundle} is a whole build, and one bundle is taken at a time",
                fix=f"name one of {', '.join(str(bundle / name) for name in there)}",
            )
        raise IntegrityError(f"{bundle}/manifest.json lists no artifacts", fix="name one target's folder")
    try:
        golden = json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8"))
        entries = [
            BundleEntry(ArtifactSpec.parse(entry["artifact"]), str(entry["file"]))
            for entry in manifest["artifacts"]
        ]
        tolerances = {str(file): float(limits["max_abs"]) for file, limits in golden["tolerance"].items()}
        samples: list[Mapping[str, Any]] = [
            {
                "inputs": {**item["inputs"]},
                "outputs": {**item["outputs"]},
                "raw": {**item.get("raw", {})},
            }
            for item in golden["samples"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OSError, UsageError) as error:
        raise IntegrityError(
            f"{bundle}: manifest.json and golden.json do not say what to replay ({type(error).__name__}: {error})",
            fix="build the bundle again",
        ) from error
    for entry in entries:
        if entry.file in {"", ".", ".."} or "/" in entry.file or "\\" in entry.file:
            raise IntegrityError(
                f"{bundle}/manifest.json names the artifact file {entry.file!r}, outside models/",
                fix="build the bundle again",
            )
    return entries, tolerances, samples


def read_versions(bundle: Path) -> dict[str, str]:
    """Return the version of the runtime that each artifact ran in when it was built; nothing for what names none."""
    try:
        evidence = json.loads((bundle / "evidence.json").read_text(encoding="utf-8"))
        told = {str(item["artifact"]): str(item["runtime_version"]).partition("+")[0] for item in evidence}
    except (KeyError, TypeError, ValueError, OSError):
        return {}
    return {artifact: version for artifact, version in told.items() if _VERSION.fullmatch(version)}


def _replay_pictures(bundle: Path, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return whether the contract makes of every golden picture its tensor, and what is wrong if not; None without any.

    The first mistake is the one that is named.
    """
    from calibration.preprocess import Preprocess

    folder = bundle / "golden"
    pictures = [(name, file, sample["inputs"]) for sample in samples for name, file in sample["raw"].items()]
    if not pictures:
        return None
    table = dict(read_contract(bundle).contract)
    try:
        contract = Preprocess.from_dict(table)
    except (RecipeError, TypeError) as error:
        raise IntegrityError(
            f"{bundle}/{DOCUMENT_NAME} is no contract of pictures: {error}", fix="build the bundle again"
        ) from error
    for name, file, tensors in pictures:
        if name not in tensors:
            raise IntegrityError(
                f"{folder}/golden.json has a picture and no tensor of input {name!r}",
                fix="build the bundle again",
            )
        wanted = read_array(folder, tensors[name])
        if wanted.shape != contract.shape:
            raise IntegrityError(
                f"{folder}/{tensors[name]} has shape {wanted.shape}, and the contract makes {contract.shape}",
                fix="build the bundle again",
            )
        made = contract.apply(read_golden_picture(folder, file))
        code, says = name_mistake(wanted, made, contract.to_dict())
        if code != "ok":
            return {"samples": len(pictures), "passed": False, "cause": code, "says": f"{file}: {says}"}
    return {
        "samples": len(pictures),
        "passed": True,
        "cause": None,
        "says": f"{len(pictures)} pictures were prepared as in calibration",
    }


def _replay(
    bundle: Path, entry: BundleEntry, samples: Sequence[Mapping[str, Any]], tolerance: float | None
) -> dict[str, Any]:
    verdict = {"file": entry.file, "artifact": str(entry.spec), "runtime": None, "passed": None, "note": ""}
    if entry.spec.format is Format.MLPACKAGE:
        return {**verdict, "note": "hashed only: Core ML runs on Apple systems"}
    folder = bundle / "golden"
    if tolerance is None or not samples or any(entry.file not in sample["outputs"] for sample in samples):
        raise IntegrityError(
            f"{folder}/golden.json has no recorded answers of {entry.file}", fix="build the bundle again"
        )
    recorded = [_arrays(folder, sample["outputs"][entry.file]) for sample in samples]
    with scratch_folder("replay") as scratch:
        inputs = scratch / "in"
        inputs.mkdir()
        for number, sample in enumerate(samples):
            write_sample(inputs, number, _arrays(folder, sample["inputs"]))
        record = run_artifact(
            bundle / "models" / entry.file,
            entry.spec.format,
            inputs,
            scratch / "out",
            log=scratch / "log",
            timed=False,
        )
        answers = list(read_samples(record.outputs))
    if set(answers[0]) != set(recorded[0]):
        raise IntegrityError(
            f"{bundle}/models/{entry.file} answers {', '.join(answers[0])}, "
            f"golden.json records {', '.join(recorded[0])}",
            fix="build the bundle again",
        )
    fidelity = compare_outputs(recorded, answers)
    return {
        **verdict,
        "runtime": f"{record.runtime} {record.version}",
        "passed": fidelity.max_abs_error <= tolerance,
        "max_abs_error": fidelity.max_abs_error,
        "tolerance": tolerance,
        "sqnr_db": fidelity.sqnr_db,
    }


def _arrays(folder: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {name: read_array(folder, relative) for name, relative in names.items()}

"""Replay a bundle: re-hash every file, run every artifact on the golden inputs, compare the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import GateError, IntegrityError
from exporter.files import scratch_folder
from exporter.golden import read_array
from exporter.manifest import check_manifest, read_manifest
from exporter.metrics import compare_outputs
from exporter.progress import Progress
from exporter.runtimes.worker import read_samples, run_artifact, write_sample


def replay_bundle(bundle: Path, *, progress: Progress) -> dict[str, Any]:
    """Return what a replay of `bundle` found, for each artifact; see `docs/report.md` for the keys.

    Raises `InputError` (10) if the folder is no bundle, `IntegrityError` (19) if a file is not what was
    recorded, `GateError` (14) naming the artifact whose answers are out of tolerance.
    """
    manifest = read_manifest(bundle)
    with progress.step("hashing files"):
        hashed = check_manifest(bundle)
    artifacts = manifest.get("artifacts")
    if not isinstance(artifacts, list):
        raise IntegrityError(f"{bundle}/manifest.json lists no artifacts", fix="name one target's folder")
    golden = json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8"))
    verdicts = []
    with progress.step("replaying golden vectors", len(artifacts)) as advance:
        for number, entry in enumerate(artifacts, start=1):
            verdicts.append(_replay(bundle, entry, golden))
            advance(number)
    failed = [verdict for verdict in verdicts if verdict["passed"] is False]
    result = {
        "bundle": str(bundle),
        "target": manifest["target"],
        "model": f"{manifest['name']} {manifest['version']}",
        "files_hashed": hashed,
        "artifacts": verdicts,
        "passed": not failed,
    }
    if failed:
        worst = failed[0]
        raise GateError(
            f"{bundle}/models/{worst['file']} answers the golden vectors with an error of "
            f"{worst['max_abs_error']:.4g}, tolerance {worst['tolerance']:.4g}",
            fix="do not ship it: this host's runtime differs from the one that built it, or the file is wrong",
            details=result,
        )
    return result


def _replay(bundle: Path, entry: Mapping[str, Any], golden: Mapping[str, Any]) -> dict[str, Any]:
    spec = ArtifactSpec.parse(entry["artifact"])
    verdict = {
        "file": entry["file"],
        "artifact": entry["artifact"],
        "runtime": None,
        "passed": None,
        "note": "",
    }
    if spec.format is Format.MLPACKAGE:
        return {**verdict, "note": "hashed only: Core ML runs on Apple systems"}
    folder = bundle / "golden"
    with scratch_folder("replay") as scratch:
        inputs, outputs = scratch / "in", scratch / "out"
        inputs.mkdir()
        for number, sample in enumerate(golden["samples"]):
            write_sample(inputs, number, _arrays(folder, sample["inputs"]))
        record = run_artifact(
            bundle / "models" / entry["file"],
            spec.format,
            inputs,
            outputs,
            log=scratch / "log",
            timed=False,
        )
        answers = list(read_samples(record.outputs))
    recorded = [_arrays(folder, sample["outputs"][entry["file"]]) for sample in golden["samples"]]
    fidelity = compare_outputs(recorded, answers)
    tolerance = float(golden["tolerance"][entry["file"]]["max_abs"])
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

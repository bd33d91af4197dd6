"""Bundles with figures of one's choice: what `check` and `compare` read, without a model in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.bundle.manifest import write_manifest
from exporter.bundle.measured import attach

FILES = {"onnx:static_wi8_ai8": "net.onnx", "tflite:static_wi8_ai8": "net.tflite"}


def make_bundle(folder: Path, *, size: int = 1000, sqnr: float = 30.0, **budget: float) -> Path:
    """Return a bundle of two files of `size` and `size` + 1 bytes, with evidence."""
    (folder / "models").mkdir(parents=True)
    for more, name in enumerate(FILES.values()):
        (folder / "models" / name).write_bytes(b"x" * (size + more))
    evidence = [
        {
            "artifact": artifact,
            "task": {"metric": "top1", "value": 0.99},
            "fidelity": {"sqnr_db": sqnr, "agreement": 1.0},
        }
        for artifact in FILES
    ]
    (folder / "evidence.json").write_text(json.dumps(evidence))
    listed = [{"artifact": artifact, "file": name} for artifact, name in FILES.items()]
    facts = {"name": "net", "version": "1.0.0", "target": "raspberry-pi", "artifacts": listed}
    write_manifest(folder, {**facts, "budget": budget})
    return folder


def measured(bundle: Path, name: str, where: str = "ssh://me@home", **figures: Any) -> Path:
    """Attach a record in which the `.tflite` is twice as fast as the `.onnx`; `figures` are the `.tflite`'s."""
    told = {"p50_ms": 10.0, "p90_ms": 12.0, "peak_rss_mb": 50.0, "instructions_m": None, "noise": 0.0}
    told |= figures
    items = []
    for factor, (artifact, file) in zip((2.0, 1.0), FILES.items(), strict=True):
        scaled = {
            key: None if value is None else value * (1.0 if key == "noise" else factor)
            for key, value in told.items()
            if key != "passed"
        }
        items.append(
            {
                **scaled,
                "artifact": artifact,
                "file": file,
                "runtime": "r",
                "threads": 1,
                "parity": {"tolerance": 1.0, "passed": told.get("passed", True)},
            }
        )
    report = {"where": where, "at": "2026-01-01T00:00:00Z", "device": {}, "measurements": items}
    return attach(bundle, name, report)


def rewrite(bundle: Path, **facts: Any) -> None:
    """Write the manifest of `bundle` anew, with other facts."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    kept = {key: manifest[key] for key in ("name", "version", "target", "artifacts", "budget")}
    write_manifest(bundle, {**kept, **facts})

"""From an entry of models.json to a model that runs: the file's digest is checked first."""

from __future__ import annotations

import hashlib
from pathlib import Path

from targets.raspberry_pi.runner.bundle import BUNDLE, Json
from targets.raspberry_pi.runner.choice import SUFFIXES
from targets.raspberry_pi.runner.errors import ModelError, first_line
from targets.raspberry_pi.runner.litert_model import LiteRtModel
from targets.raspberry_pi.runner.onnx_model import OnnxModel
from targets.raspberry_pi.runner.session import Session


def load_model(entry: Json, threads: int) -> Session | None:
    """Return the model of one `models.json` entry, or None if no runtime for it is installed."""
    path = BUNDLE / "models" / entry["file"]
    require_sound(path, entry["sha256"])
    kind = LiteRtModel if path.suffix in SUFFIXES["litert"] else OnnxModel
    try:
        return kind(path, threads)
    except ImportError:
        return None
    except (RuntimeError, ValueError) as error:
        raise _runtime_refused(path, error) from error
    except Exception as error:  # onnxruntime's exceptions share no base class but this one
        if type(error).__module__.startswith("onnxruntime"):
            raise _runtime_refused(path, error) from error
        raise


def load_first(entries: list[Json], threads: int) -> tuple[Json, Session]:
    """Return the first of `entries` that has a runtime here, and its model."""
    for entry in entries:
        model = load_model(entry, threads)
        if model is not None:
            return entry, model
    raise no_runtime(entries)


def require_sound(path: Path, sha256: str) -> None:
    """Raise unless the file has the bytes that were validated: a runtime loads a flipped weight without a word."""
    try:
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            "E-input",
            10,
            f"{path} cannot be read: {error.strerror}",
            "copy or install the whole bundle again",
        ) from error
    if actual != sha256:
        raise ModelError(
            "E-integrity",
            19,
            f"{path} has SHA-256 {actual[:16]}…, models.json records {sha256[:16]}…",
            "copy or install the whole bundle again; do not use this file",
        )


def _runtime_refused(path: Path, error: Exception) -> ModelError:
    return ModelError(
        "E-unsupported",
        12,
        f"the runtime cannot load {path.name}: {first_line(error)}",
        "check the file against manifest.json and update the runtime",
    )


def needed_package(entry: Json) -> str:
    """Return what to install for one `models.json` entry."""
    return "ai-edge-litert" if entry["file"].endswith(".tflite") else "onnxruntime"


def no_runtime(entries: list[Json]) -> ModelError:
    """Return the error that says what to install to run any of `entries`."""
    packages = sorted({needed_package(entry) for entry in entries})
    return ModelError(
        "E-unsupported",
        12,
        f"no runtime is installed for {', '.join(entry['file'] for entry in entries)}",
        f"python -m pip install {' or '.join(packages)}",
    )

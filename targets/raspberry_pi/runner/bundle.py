"""The files of this bundle, which lie beside the script; what they hold is checked, and nothing in them is executed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from targets.raspberry_pi.runner.errors import ModelError, first_line

API_VERSION = 1
BUNDLE = Path(__file__).resolve().parent

Json = dict[str, Any]
"""A document of the bundle, or a part of one."""


def read_json(path: Path) -> Json:
    """Return a document of this bundle."""
    try:
        document: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "E-input", 10, f"cannot read {path}: {first_line(error)}", "copy the whole bundle again"
        ) from error
    if document.get("format") != 1:
        raise ModelError(
            "E-unsupported",
            12,
            f"{path.name} has format {document.get('format')!r}, this script reads 1",
            "use the run.py that came with the bundle",
        )
    return document


def read_tensor(path: Path) -> np.ndarray:
    """Return the array in a `.npy` file; nothing in it is ever executed."""
    try:
        tensor: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            "E-input", 10, f"cannot read {path}: {first_line(error)}", "give a .npy file of numbers"
        ) from error
    return tensor


def read_golden() -> Json:
    """Return golden.json, which holds at least one sample."""
    golden = read_json(BUNDLE / "golden" / "golden.json")
    if not golden["samples"]:
        raise ModelError("E-input", 10, "golden/golden.json holds no samples", "build the bundle again")
    return golden


def golden_file(relative: str) -> Path:
    """Return the place of a file that golden.json names; it must lie in the bundle's own golden/ folder."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ModelError(
            "E-unsafe",
            11,
            f"golden/golden.json names {relative!r}, outside its folder",
            "build the bundle again",
        )
    return BUNDLE / "golden" / relative


def golden_tensor(relative: str) -> np.ndarray:
    """Return one array that golden.json names."""
    return read_tensor(golden_file(relative))

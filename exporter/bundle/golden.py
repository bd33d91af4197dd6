"""Golden vectors: a few real inputs with the float model's and each artifact's answers, to replay anywhere.

`golden.json` names `.npy` files; both are trivial to read in Kotlin, Swift and Python alike.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import InputError, IntegrityError
from exporter.system.files import disk_errors, require_file, write_json

GOLDEN_SAMPLES = 4
_SMALLEST_TOLERANCE = 1e-4
"""Relative to the largest reference magnitude: float kernels of two machines differ by about this much."""


@dataclass(frozen=True, slots=True)
class GoldenInputs:
    """What the golden vectors are made for: `samples`, and for those that start from pictures their files.

    `raw` has one mapping a sample, from input to the bytes of the PNG that the contract makes its tensor of, or is
    empty; `reveals` are the codes (`exporter.bundle.mistakes`) of the mistakes that would show on these pictures.
    """

    samples: tuple[Mapping[str, np.ndarray], ...]
    raw: tuple[Mapping[str, bytes], ...] = ()
    reveals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest allowed |difference|: to the answer recorded here, and to the float model's answer."""

    max_abs: float
    max_abs_reference: float


def tolerance_of(reference: Sequence[Mapping[str, np.ndarray]], largest_error: float) -> Tolerance:
    """Return what a replay may differ by, from the error measured over the evaluation set.

    Another machine rounds differently on the integer grid, so a replay may be as far from the recorded
    answer as the artifact itself is from the float model, and twice that far from the float model.
    """
    magnitude = max(
        (float(np.max(np.abs(a), initial=0.0)) for out in reference for a in out.values()), default=0.0
    )
    floor = _SMALLEST_TOLERANCE * max(magnitude, 1e-3)
    return Tolerance(max(largest_error, floor), max(2.0 * largest_error, 2.0 * floor))


def write_golden(
    folder: Path,
    inputs: Sequence[TensorSpec],
    golden: GoldenInputs,
    reference: Sequence[Mapping[str, np.ndarray]],
    answers: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    tolerances: Mapping[str, Tolerance],
) -> None:
    """Write `golden.json`, its arrays and pictures; `answers` and `tolerances` are by artifact file name.

    An artifact that could not be run here has no answers, and is compared with the reference alone.
    """
    listing: list[dict[str, Any]] = []
    for number, (sample, want) in enumerate(zip(golden.samples, reference, strict=True)):
        (folder / str(number)).mkdir(parents=True)
        item: dict[str, Any] = {
            "inputs": _save(folder, number, "input", sample),
            "reference": _save(folder, number, "reference", want),
            "outputs": {
                file: _save(folder, number, Path(file).name, got[number]) for file, got in answers.items()
            },
        }
        if golden.raw:
            item["raw"] = _save_pictures(folder, number, golden.raw[number])
        listing.append(item)
    document: dict[str, Any] = {
        "format": 1,
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in inputs],
        "samples": listing,
        "tolerance": {
            file: {"max_abs": tolerance.max_abs, "max_abs_reference": tolerance.max_abs_reference}
            for file, tolerance in tolerances.items()
        },
    }
    if golden.raw:
        document["reveals"] = list(golden.reveals)
    write_json(folder / "golden.json", document)


def _save(folder: Path, number: int, stem: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    paths = {}
    for name, array in arrays.items():
        relative = f"{number}/{stem}.{name}.npy"
        content = io.BytesIO()  # numpy writing to a file hides the reason why a write failed
        np.save(content, np.ascontiguousarray(array), allow_pickle=False)
        with disk_errors(folder / relative):
            (folder / relative).write_bytes(content.getbuffer())
        paths[name] = relative
    return paths


def _save_pictures(folder: Path, number: int, pictures: Mapping[str, bytes]) -> dict[str, str]:
    paths = {}
    for name, content in pictures.items():
        relative = f"{number}/raw.{name}.png"
        with disk_errors(folder / relative):
            (folder / relative).write_bytes(content)
        paths[name] = relative
    return paths


def golden_file(folder: Path, relative: str) -> Path:
    """Return the file that `golden.json` calls `relative`; `IntegrityError` if that leaves the folder, `InputError` if
    there is none.
    """
    path = folder / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise IntegrityError(
            f"{folder}/golden.json names {relative!r}, outside its folder", fix="build the bundle again"
        )
    return require_file(path, what="golden vector")


def read_array(folder: Path, relative: str) -> np.ndarray:
    """Return one array that `golden.json` names; refuses paths that leave the folder, and pickles."""
    path = golden_file(folder, relative)
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"golden vector {path} is not a .npy array", fix="build the bundle again") from error
    return array

"""Which samples the golden vectors replay, and the pictures that those of an image model start from.

A tensor proves that a device computes; only a picture proves that an app prepares it as calibration did. For a model
with an image contract the golden tensor is therefore what the contract makes of a picture that lies beside it. Where the
data is pictures, it is one of them; where it is arrays that somebody prepared, one that prepares to nearly the same.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.dataset import IndexedDataset
from calibration.preprocess import FITS, RESIZES, Preprocess
from exporter.arrays import Sample
from exporter.bundle.golden import GOLDEN_SAMPLES, GoldenInputs, golden_file
from exporter.bundle.mistakes import SINGLE_CODES, name_mistake, revealed_codes
from exporter.bundle.png import encode_png
from exporter.errors import InputError, IntegrityError, first_line

if TYPE_CHECKING:
    from PIL import Image


LARGEST_SIDE = 512
"""Larger pictures are shrunk: a golden vector proves preparation, not the reading of large files."""
CANDIDATES = 32
"""How many samples are looked at for pictures on which mistakes show: four in colour, usually the first four."""
RESIZE_CODE = "resize"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One sample that starts from a picture, and the mistakes that show on it."""

    number: int
    sample: Sample
    png: bytes
    reveals: tuple[str, ...]


def choose_golden_inputs(
    samples: Iterable[Sample], contract: Preprocess | None
) -> tuple[GoldenInputs, tuple[str, ...]]:
    """Return the golden inputs out of `samples` (re-iterable), and what is odd about them, in sentences.

    Without an image `contract` they are the first samples as they are; so they are, and a sentence says why, where no
    input, or more than one, takes what the contract makes.
    """
    first = list(itertools.islice(samples, GOLDEN_SAMPLES))
    if contract is None or not first:
        return GoldenInputs(tuple(first)), ()
    takers = [name for name, array in first[0].items() if _is_made_by(contract, array)]
    if len(takers) != 1:
        who = f"{' and '.join(takers)} take that" if takers else "no input takes that"
        return GoldenInputs(tuple(first)), (_without_pictures(contract, who),)
    chosen = _most_telling(_candidates(samples, takers[0], contract), contract)
    if not chosen:
        return GoldenInputs(tuple(first)), (_without_pictures(contract, "no sample is finite"),)
    told = {code for candidate in chosen for code in candidate.reveals}
    return (
        GoldenInputs(
            samples=tuple(candidate.sample for candidate in chosen),
            raw=tuple({takers[0]: candidate.png} for candidate in chosen),
            reveals=tuple(code for code in (*SINGLE_CODES, RESIZE_CODE) if code in told),
        ),
        (),
    )


def read_golden_picture(folder: Path, relative: str) -> Image.Image:
    """Return one picture that `golden.json` names; refuses paths that leave the folder, and what is no plain PNG."""
    from PIL import Image, UnidentifiedImageError

    path = golden_file(folder, relative)
    try:
        with warnings.catch_warnings(action="error"), Image.open(path, formats=["PNG"]) as image:
            image.load()
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Warning,
        OSError,
        SyntaxError,
        ValueError,
    ) as error:
        raise InputError(
            f"golden picture {path} is not a PNG that can be read: {first_line(error)}",
            fix="build the bundle again",
        ) from error
    if image.mode not in ("L", "RGB") or image.info:
        raise IntegrityError(
            f"golden picture {path} is not a plain 8-bit PNG in grey or RGB", fix="build the bundle again"
        )
    return image


def _is_made_by(contract: Preprocess, array: np.ndarray) -> bool:
    return array.shape == contract.shape and array.dtype == np.dtype(contract.dtype)


def _without_pictures(contract: Preprocess, why: str) -> str:
    makes = f"{contract.dtype}[{', '.join(map(str, contract.shape))}]"
    return (
        f"golden vectors start from tensors, not from pictures: preprocess makes {makes}, and {why}; "
        "a mistake in an app's preprocessing will not show"
    )


def _candidates(samples: Iterable[Sample], taker: str, contract: Preprocess) -> Iterator[_Candidate]:
    for number, (sample, picture) in enumerate(
        itertools.islice(_pictured(samples, taker, contract), CANDIDATES)
    ):
        png = encode_png(np.asarray(_shrunk(picture)))
        # What counts is the file: the tensor is what a reader of it makes of it.
        with _opened(png) as shipped:
            tensor = contract.apply(shipped)
            resized = (RESIZE_CODE,) if _shows_resizing(shipped, tensor, contract) else ()
        reveals = (*revealed_codes(tensor, contract.to_dict()), *resized)
        yield _Candidate(number, {**sample, taker: tensor}, png, reveals)


def _pictured(
    samples: Iterable[Sample], taker: str, contract: Preprocess
) -> Iterator[tuple[Sample, Image.Image]]:
    """Yield samples with the picture of each: the data's own, or the one that the contract prepares most alike."""
    if isinstance(samples, IndexedDataset) and samples.has_pictures:
        yield from (({}, samples.picture(number)) for number in range(len(samples)))
        return
    for sample in samples:
        if _is_made_by(contract, sample[taker]) and np.isfinite(sample[taker]).all():
            yield sample, contract.invert(sample[taker])


def _shrunk(picture: Image.Image) -> Image.Image:
    from PIL import Image

    ratio = LARGEST_SIDE / max(picture.size)
    if ratio >= 1:
        return picture
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _opened(png: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(png), formats=["PNG"])


def _shows_resizing(picture: Image.Image, tensor: np.ndarray, contract: Preprocess) -> bool:
    """Whether another way to resize `picture` would show: one of the size that the contract wants is never resized."""
    others = [
        *(dataclasses.replace(contract, resize=way) for way in RESIZES if way != contract.resize),
        *(dataclasses.replace(contract, fit=way) for way in FITS if way != contract.fit),
    ]
    plain = contract.to_dict()
    return any(name_mistake(tensor, other.apply(picture), plain)[0] == RESIZE_CODE for other in others)


def _most_telling(candidates: Iterator[_Candidate], contract: Preprocess) -> list[_Candidate]:
    """Return the first candidates on which every mistake shows, and for want of them those on which most do, in order."""
    possible = set(_possible_codes(contract))
    telling: list[_Candidate] = []
    others: list[_Candidate] = []
    for candidate in candidates:
        (telling if possible <= set(candidate.reveals) else others).append(candidate)
        if len(telling) == GOLDEN_SAMPLES:
            return telling
    others.sort(key=lambda candidate: -len(candidate.reveals))
    return sorted([*telling, *others][:GOLDEN_SAMPLES], key=lambda candidate: candidate.number)


def _possible_codes(contract: Preprocess) -> tuple[str, ...]:
    """Return the mistakes that would show on a picture of all colours."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (*contract.size, 3), np.uint8)
    return revealed_codes(contract.apply(Image.fromarray(noise)), contract.to_dict())

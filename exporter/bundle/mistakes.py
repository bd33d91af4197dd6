"""What is wrong with a tensor that should have been made from a picture: its cause by name, from the numbers alone.

An app that shows a network blue where it learned red answers plausibly, and worse. Given the tensor that the
preprocessing contract makes of a golden picture and the one that an app made of it, the usual mistakes are tried one
after the other. Knows numbers and the contract as `preprocess.json` has it; no picture, file or model.
The same rules, in the same words, travel in every bundle's `run.py` and in the generated Kotlin and Swift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AGREEING_LEVELS = 2.001
"""Grey levels that two decoders, or two ways of rounding, may differ by; the thousandth is float32's own rounding."""
SINGLE_CODES = ("color", "layout", "range", "scaled-twice", "normalisation", "raw")

_SAME_LEVELS = 0.01
_COLORS = ("RGB", "BGR")
_LAYOUTS = ("NCHW", "NHWC")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Way:
    """An arithmetic from grey levels to values, (level * scale - mean) / std, and what is wrong with it."""

    code: str
    says: str
    scale: float
    mean: Floats
    std: Floats


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to prepare the golden picture: what to call it, and its values and the size of a grey level, flat."""

    codes: tuple[str, ...]
    sentences: tuple[str, ...]
    values: Floats
    unit: Floats

    def agrees(self, values: Floats, levels: float = AGREEING_LEVELS) -> bool:
        return bool((np.abs(self.values - values) <= levels * self.unit).all())


def name_mistake(expected: NDArray[Any], got: NDArray[Any], contract: Mapping[str, Any]) -> tuple[str, str]:
    """Return (code, sentence) for the tensor `got` of a picture whose right tensor is `expected`.

    `ok` when they agree: within two grey levels everywhere. Else the first mistake that turns `expected` into `got`: one
    of `SINGLE_CODES`, or several joined by `+`. Else `size`, `not-finite` or, for whatever is left, `resize`.
    `contract` is that of an image, of which `expected` has the shape; of `got` only the order of its values matters.
    """
    if got.size != expected.size:
        return "size", f"the tensor has {got.size} values, the model takes {expected.size}"
    values = np.asarray(got, np.float64).reshape(-1)
    broken = values.size - int(np.count_nonzero(np.isfinite(values)))
    if broken:
        return "not-finite", f"{broken} of its {got.size} values are not finite numbers"
    values = _held(values, contract)
    candidates = _candidates(expected, contract)
    right, found = candidates[0], _first_that_agrees(candidates, values)
    if found is right:
        return "ok", "the tensor agrees with the golden one"
    if found is not None:
        return "+".join(found.codes), "; and ".join(found.sentences)
    levels = np.abs(right.values - values) / right.unit
    return "resize", (
        f"the picture differs by {levels.max():.1f} grey levels at most, {levels.mean():.1f} on average: "
        f"another resize, fit or orientation than {contract['resize']}/{contract['fit']}"
    )


def revealed_codes(expected: NDArray[Any], contract: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which of `SINGLE_CODES` the picture with the right tensor `expected` would be called by.

    A grey picture looks the same with its colours swapped, and a mistake that changes nothing cannot be seen.
    """
    candidates = _candidates(expected, contract)
    revealed = []
    for mistake in candidates:
        # As an app's tensor would hold it: float16 has no room for a mistake that makes all values nearly alike.
        with np.errstate(over="ignore"):
            got = mistake.values.astype(contract["dtype"]).astype(np.float64)
        if len(mistake.codes) == 1 and _first_that_agrees(candidates, got) is mistake:
            revealed.append(mistake.codes[0])
    return tuple(revealed)


def _first_that_agrees(candidates: Sequence[_Candidate], values: Floats) -> _Candidate | None:
    right = candidates[0]
    if right.agrees(values):
        return right
    for mistake in candidates[1:]:
        # Under some contracts a mistake changes nothing, and on some pictures it does not show.
        shows = (np.abs(mistake.values - right.values) > _SAME_LEVELS * right.unit).any()
        if shows and mistake.agrees(values):
            return mistake
    return None


def _candidates(expected: NDArray[Any], contract: Mapping[str, Any]) -> list[_Candidate]:
    """Return the right way first, then every mistake: those of one cause before those of several."""
    values = _channels_last(expected, contract)
    own, *wrong = _ways(contract)
    right = _Candidate((), (), *_as_it_lies(values, own, contract, contract["layout"]))
    pixels = (values * own.std + own.mean) / own.scale
    channels = pixels.shape[2]
    made = [
        _mistaken(pixels, contract, way, is_swapped=is_swapped, is_moved=is_moved)
        for way in (own, *wrong)
        for is_moved in ((False, True) if channels > 1 else (False,))
        for is_swapped in ((False, True) if channels == 3 else (False,))
        if way.code or is_moved or is_swapped
    ]
    return [right, *sorted(made, key=lambda candidate: len(candidate.codes))]


def _mistaken(
    pixels: Floats, contract: Mapping[str, Any], way: _Way, *, is_swapped: bool, is_moved: bool
) -> _Candidate:
    causes = {way.code: way.says} if way.code else {}
    layout = contract["layout"]
    if is_swapped:
        other = _other(contract["color"], _COLORS)
        causes["color"] = f"channels are in the order {other} instead of {contract['color']}"
    if is_moved:
        layout = _other(layout, _LAYOUTS)
        causes["layout"] = f"the tensor is laid out {layout} instead of {contract['layout']}"
    values = ((pixels[:, :, ::-1] if is_swapped else pixels) * way.scale - way.mean) / way.std
    return _Candidate(tuple(causes), tuple(causes.values()), *_as_it_lies(values, way, contract, layout))


def _as_it_lies(values: Floats, way: _Way, contract: Mapping[str, Any], layout: str) -> tuple[Floats, Floats]:
    """Return `values`, and what one grey level is in each of them, flat in the order of `layout`."""
    return _laid_out(_held(values, contract), layout), _laid_out(_levels(values, way, contract), layout)


def _ways(contract: Mapping[str, Any]) -> tuple[_Way, ...]:
    """Return the contract's own way from grey levels to values, and the wrong ones."""
    scale = float(contract["scale"])
    mean, std = (np.asarray(contract[key], np.float64) for key in ("mean", "std"))
    nought, one = np.zeros_like(mean), np.ones_like(std)
    short = f"{scale:.6g}"
    return (
        _Way("", "", scale, mean, std),
        _Way("range", f"pixels are 0..255 where they should have been multiplied by {short}", 1.0, mean, std),
        _Way("scaled-twice", f"pixels were multiplied by {short} twice", scale * scale, mean, std),
        _Way("normalisation", "mean and std were not applied", scale, nought, one),
        _Way("raw", "pixels are given as they are: neither scaled nor normalised", 1.0, nought, one),
    )


def _levels(values: Floats, way: _Way, contract: Mapping[str, Any]) -> Floats:
    """Return what one grey level is in each of `values`, which `way` made: at least one step of the dtype there.

    What the steps of an integer tensor hide is hidden in everything that is computed from it.
    """
    level: Floats = np.abs(way.scale / way.std)
    dtype = np.dtype(contract["dtype"])
    if dtype.kind in "iu":
        steps = np.abs(np.asarray(contract["std"], np.float64) / contract["scale"])
        return np.broadcast_to(np.maximum(level * np.maximum(steps, 1.0), 1.0), values.shape)
    with np.errstate(all="ignore"):  # beyond the dtype there are no steps, and nothing agrees
        held: Floats = np.maximum(level, np.spacing(np.abs(values).astype(dtype)).astype(np.float64))
    return held


def _held(values: Floats, contract: Mapping[str, Any]) -> Floats:
    """Return `values` as a tensor of the contract's dtype can hold them, without the rounding of floats."""
    dtype = np.dtype(contract["dtype"])
    if dtype.kind not in "iu":
        return values
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max)


def _other(one: str, pair: tuple[str, str]) -> str:
    return pair[1] if one == pair[0] else pair[0]


def _channels_last(tensor: NDArray[Any], contract: Mapping[str, Any]) -> Floats:
    """Return the values of a right tensor as [height, width, channel]."""
    height, width = contract["size"]
    values = np.asarray(tensor, np.float64)
    if contract["layout"] == "NCHW":
        values = values.reshape(-1, height, width).transpose(1, 2, 0)
    return values.reshape(height, width, -1)


def _laid_out(values: Floats, layout: str) -> Floats:
    return (values.transpose(2, 0, 1) if layout == "NCHW" else values).reshape(-1)

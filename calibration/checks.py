"""Is this data fit to calibrate with? Errors where a result would be wrong, findings where it may be poor.

Knows arrays and what the model's inputs declare. Must not know files, models or rules.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from calibration.dataset import Dataset
from exporter.arrays import Array, Sample
from exporter.errors import CalibrationError

RECOMMENDED_SAMPLES = 100
"""Below this many samples ranges still move noticeably from set to set; 100 to 300 are enough."""

_OUTLIER_RATIO = 1e4
_CHANNEL_COUNTS = (1, 2, 3, 4)
_PREVIEW = 5


class InputSpec(Protocol):
    """What the model declares of one input: any object with these three attributes."""

    @property
    def name(self) -> str:
        """Name of the input."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy name of the element type, such as "float32" or "int64"."""
        ...

    @property
    def shape(self) -> Sequence[int | str]:
        """Shape as the model takes it; a str is a named dynamic axis."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd about the data that does not stop a build.

    `code` is stable: "too-few", "duplicates", "blank-samples", "constant-input", "outlier".
    """

    code: str
    message: str
    fix: str


@dataclass(slots=True)
class _Seen:
    """What one pass over one input gathers: a few numbers a sample."""

    low: float = np.inf
    high: float = -np.inf
    peaks: list[float] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)


def check_dataset(dataset: Dataset, inputs: Sequence[InputSpec], *, minimum: int = 1) -> list[Finding]:
    """Read every sample once and return what is odd; raise for what would give a wrong model.

    Raises CalibrationError for fewer than `minimum` samples, for wrong names, ranks, shapes or dtypes
    (expected, found and the likely cause), for NaN or infinite values (sample, input and coordinates), and
    when every element of every input is the same in all samples. A single constant input is a finding if it
    is floating-point and nothing if it is an integer: attention masks are.
    """
    needed = max(minimum, 1)
    if len(dataset) < needed:
        raise CalibrationError(
            f"{dataset.source or 'the calibration set'} holds {len(dataset)} samples, {needed} are needed",
            fix="add samples, or correct the path or pattern that finds them",
        )
    seen = {spec.name: _Seen() for spec in inputs}
    digests: dict[bytes, list[int]] = {}
    for index, sample in enumerate(dataset):
        _check_names(sample, inputs, index)
        digest = hashlib.blake2b(digest_size=16)
        for spec in inputs:
            array = sample[spec.name]
            check_array(array, spec, index)
            _note(seen[spec.name], array, index)
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        digests.setdefault(digest.digest(), []).append(index)
    _check_varied(seen, len(dataset))
    return [
        *_few(len(dataset)),
        *_duplicates(digests, len(dataset)),
        *(finding for spec in inputs for finding in _odd_values(spec, seen[spec.name])),
    ]


def check_array(array: Array, spec: InputSpec, index: int) -> None:
    """Raise CalibrationError unless `array` (sample `index`) is what `spec` declares, all finite."""
    where = f"sample {index}, input {spec.name!r}"
    if not isinstance(array, np.ndarray):
        raise CalibrationError(
            f"{where}: expected an array, got {type(array).__name__}", fix="give numpy arrays"
        )
    _check_shape(array, spec, where)
    _check_dtype(array, spec, where)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        flat = int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])
        place = tuple(int(axis) for axis in np.unravel_index(flat, array.shape))
        value = str(array.reshape(-1)[flat]).replace("inf", "Inf").replace("nan", "NaN")
        raise CalibrationError(
            f"{where}: {value} at {place} (flat index {flat})",
            fix="repair or remove the sample",
            details={"sample": index, "input": spec.name, "flat_index": flat},
        )


def _check_names(sample: Sample, inputs: Sequence[InputSpec], index: int) -> None:
    expected, got = {spec.name for spec in inputs}, set(sample)
    if expected == got:
        return
    missing, extra = sorted(expected - got), sorted(got - expected)
    near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.4) if missing else []
    if near:
        fix = f"rename {near[0]!r} to {missing[0]!r}"
    elif missing and extra:
        fix = f"rename {extra[0]!r} to {missing[0]!r}, if that is what it holds"
    elif missing:
        fix = f"add {missing[0]!r}"
    else:
        fix = f"remove {extra[0]!r}"
    raise CalibrationError(
        f"sample {index}: expected inputs {_listed(expected)}, got {_listed(got)}", fix=fix
    )


def _check_shape(array: Array, spec: InputSpec, where: str) -> None:
    if _fits(array.shape, spec.shape):
        return
    expected, got = _shown(spec.shape), _shown(array.shape)
    if array.ndim == len(spec.shape):
        cause = f"expected shape {expected}, got {got}"
    else:
        cause = f"expected rank {len(spec.shape)} {expected}, got rank {array.ndim} {got}"
    raise CalibrationError(f"{where}: {cause}", fix=_shape_remedy(array.shape, spec.shape))


def _shape_remedy(got: tuple[int, ...], expected: Sequence[int | str]) -> str:
    """Return the likely cause of a wrong shape and what undoes it."""
    if len(got) == len(expected) == 4:
        if _fits((got[0], got[3], got[1], got[2]), expected) and got[3] in _CHANNEL_COUNTS:
            return "looks like NHWC: transpose with (0, 3, 1, 2)"
        if _fits((got[0], got[2], got[3], got[1]), expected) and got[1] in _CHANNEL_COUNTS:
            return "looks like NCHW: transpose with (0, 2, 3, 1)"
    if (
        len(got) == 3
        and len(expected) == 4
        and _fits((1, got[2], got[0], got[1]), expected)
        and not _fits((1, *got), expected)
    ):
        return "looks like HWC without a batch axis: transpose with (2, 0, 1) and add a leading axis of 1"
    if _fits((1, *got), expected):
        return "the batch axis is missing: add a leading axis of 1"
    if len(got) == len(expected) + 1 and got[0] == 1 and _fits(got[1:], expected):
        return "there is one batch axis too many: drop the leading axis"
    if len(got) == len(expected) and _fits((1, *got[1:]), expected):
        return f"each sample must be a batch of 1, not of {got[0]}: store samples along the leading axis"
    if len(got) == len(expected) == 3 and _fits((got[0], got[2], got[1]), expected):
        return "looks channels-last: transpose with (0, 2, 1)"
    fixed = sorted(axis for axis in expected[1:] if isinstance(axis, int))
    if len(got) == len(expected) and sorted(got[1:]) == fixed:
        return "the axes are in another order: transpose"
    axes = [
        place
        for place, (size, axis) in enumerate(zip(got, expected, strict=False))
        if isinstance(axis, int) and size != axis
    ]
    if len(got) == len(expected) and axes:
        change = f"from {got[axes[0]]} to {expected[axes[0]]}"
        return f"resize, crop or pad axis {axes[0]} {change}, or correct the shape in [[model.inputs]]"
    return "give each sample the shape that the model takes"


def _check_dtype(array: Array, spec: InputSpec, where: str) -> None:
    expected = np.dtype(spec.dtype)
    if array.dtype == expected:
        return
    raise CalibrationError(
        f"{where}: expected {expected}, got {array.dtype}", fix=_dtype_remedy(array, expected)
    )


def _dtype_remedy(array: Array, expected: np.dtype[np.generic]) -> str:
    """Return the likely cause of a wrong dtype and what undoes it."""
    if expected.kind == "f" and array.dtype == np.uint8:
        return f"looks like raw pixels 0..255: scale and normalise as in training, as {expected.name}"
    if expected.kind == "f" and array.dtype.kind == "f":
        return f"cast with astype({expected.name!r})"
    if expected.kind == "i" and array.dtype.kind == "f":
        return (
            f"looks like token ids stored as floats: cast with astype({expected.name!r}), if they are whole"
        )
    if expected.kind == array.dtype.kind:
        return f"cast with astype({expected.name!r})"
    return f"store the array as {expected.name}"


def _note(seen: _Seen, array: Array, index: int) -> None:
    if array.size == 0:
        return
    low, high = float(array.min()), float(array.max())
    seen.low, seen.high = min(seen.low, low), max(seen.high, high)
    seen.peaks.append(max(abs(low), abs(high)))
    if low == high and array.size > 1:
        seen.blank.append(index)


def _check_varied(seen: Mapping[str, _Seen], count: int) -> None:
    if seen and all(one.low >= one.high for one in seen.values()):
        name, one = next(iter(seen.items()))
        what = "empty" if one.low > one.high else f"{one.low:g}"
        raise CalibrationError(
            f"every element of input {name!r} is {what} in all {count} samples",
            fix="give real samples: constant data has no range",
        )


def _few(count: int) -> list[Finding]:
    if count >= RECOMMENDED_SAMPLES:
        return []
    return [
        Finding(
            "too-few",
            f"{count} samples, {RECOMMENDED_SAMPLES} or more are recommended",
            "add samples from real use",
        )
    ]


def _duplicates(digests: Mapping[bytes, list[int]], count: int) -> list[Finding]:
    repeated = [indices for indices in digests.values() if len(indices) > 1]
    extra = sum(len(indices) - 1 for indices in repeated)
    if not extra:
        return []
    if extra == count - 1:
        return [Finding("duplicates", f"all {count} samples are identical", "give different samples")]
    first = ", ".join(map(str, repeated[0][:_PREVIEW]))
    return [
        Finding(
            "duplicates",
            f"{extra} of {count} samples repeat another (first: {first})",
            "remove the repetitions",
        )
    ]


def _odd_values(spec: InputSpec, seen: _Seen) -> list[Finding]:
    floating = np.dtype(spec.dtype).kind == "f"
    if not floating or not seen.peaks:
        return []
    if seen.low == seen.high:
        message = f"input {spec.name!r} is {seen.low:g} in every sample"
        return [
            Finding("constant-input", message, "give real values, unless the input is a constant by design")
        ]
    findings = []
    if seen.blank:
        first = ", ".join(map(str, seen.blank[:_PREVIEW]))
        message = (
            f"{len(seen.blank)} samples of input {spec.name!r} hold one value throughout (first: {first})"
        )
        findings.append(Finding("blank-samples", message, "remove blank samples"))
    worst = int(np.argmax(seen.peaks))
    typical = float(np.median(seen.peaks))
    if seen.peaks[worst] > _OUTLIER_RATIO * typical > 0.0:
        message = (
            f"sample {worst} of input {spec.name!r} reaches {seen.peaks[worst]:.4g}, "
            f"typical samples reach {typical:.4g}"
        )
        findings.append(Finding("outlier", message, "remove the sample, or use rule percentile or entropy"))
    return findings


def _fits(got: Sequence[int], expected: Sequence[int | str]) -> bool:
    return len(got) == len(expected) and all(
        isinstance(axis, str) or size == axis for size, axis in zip(got, expected, strict=True)
    )


def _shown(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _listed(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"

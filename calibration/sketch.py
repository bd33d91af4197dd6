"""What was seen of one tensor: a histogram of float bit patterns, plus the exact extremes.

The bins are fixed by the float32 format, so no range is needed beforehand, one pass is enough, and any
range rule can be derived afterwards (`ranges`). This module must not know models, datasets or rules.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from exporter.arrays import Array
from exporter.errors import CalibrationError, IntegrityError

MANTISSA_BITS = 5
_SHIFT = 23 - MANTISSA_BITS
BIN_COUNT = 1 << (32 - _SHIFT)
"""Sign, 8 exponent bits and the first 5 mantissa bits of a float32: 16,384 bins, each at most 1/32 (3.1 %)
of its value wide.
"""

_NEGATIVE = BIN_COUNT // 2
_FINITE = 255 << MANTISSA_BITS

EXACT_UP_TO = 32_768
"""Samples of at most this many elements are histogrammed whole; larger ones on every k-th element, for
about as many.

On ResNet-50 (`scripts/bench_calibration.py`) histogramming costs 1.4–1.7 ns an element and the extremes 0.2 ns: whole, its
26 million activations a sample would take half of a plain pass, at this threshold about a fifth. 64 samples then still put
some 200 elements beyond the 99.99th percentile of a large tensor.
"""

_CHUNK = 1 << 16
_MAGIC = b"EDGESKT1"
_HEADER = struct.Struct("<8sffqqI")


@dataclass(slots=True)
class Sketch:
    """Histogram and extremes of one tensor over any number of samples.

    `counts` (int64, `BIN_COUNT`) is indexed by the top 14 bits of the float32 pattern. `count` is the
    number of elements seen. `minimum` and `maximum` are exact over every element (+inf and -inf before the
    first one). `zeros` is the number of exact zeros.

    For arrays above `EXACT_UP_TO` elements every k-th one is histogrammed with weight k (`stride_for`):
    `counts` and `zeros` are then estimates whose total is within one stride of the elements seen; the
    extremes stay exact. Everything is integer addition, min and max: the order, the split and the merging
    of samples cannot change a bit.
    """

    counts: Array
    count: int
    zeros: int
    minimum: float
    maximum: float

    @classmethod
    def empty(cls) -> Sketch:
        """Return a sketch that has seen nothing; merging it changes nothing."""
        return cls(np.zeros(BIN_COUNT, np.int64), 0, 0, np.inf, -np.inf)

    def update(self, array: Array) -> None:
        """Take one sample's array: any shape; float16, float32 or float64 (rounded to float32).

        Raises CalibrationError for NaN or infinite elements, naming the first one's coordinates; nothing is
        taken then.
        """
        values = _as_float32(array)
        if values.size == 0:
            return
        low, high = _extremes(values)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _non_finite(array)
        stride = stride_for(values.size)
        # Gathered once: the passes below would each fetch the skipped elements' cache lines again.
        patterns = np.ascontiguousarray(values.view(np.uint32)[::stride])
        counts = np.bincount(patterns >> _SHIFT, minlength=BIN_COUNT)
        self.counts += counts if stride == 1 else counts * stride
        if counts[0] or counts[_NEGATIVE]:
            # A zero has no bits but its sign; doubling the pattern drops that one.
            self.zeros += (patterns.size - int(np.count_nonzero(patterns << 1))) * stride
        self.count += values.size
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)

    def merge(self, other: Sketch) -> Sketch:
        """Return the sketch of both sets of samples: associative, commutative, bit-exact."""
        return Sketch(
            self.counts + other.counts,
            self.count + other.count,
            self.zeros + other.zeros,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sketch) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to_bytes(self) -> bytes:
        """Return a stable, compact form: equal sketches give equal bytes on every machine."""
        bins = np.flatnonzero(self.counts)
        body = bins.astype("<u2").tobytes() + self.counts[bins].astype("<i8").tobytes()
        # Adding zero turns -0.0 into 0.0: which zero comes first depends on the order of samples.
        extremes = (self.minimum + 0.0, self.maximum + 0.0)
        head = _HEADER.pack(_MAGIC, *extremes, self.count, self.zeros, bins.size)
        return head + body + struct.pack("<I", zlib.crc32(head + body))

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Return the sketch that `to_bytes` wrote; raises IntegrityError for any other bytes."""
        if len(data) < _HEADER.size + 4 or data[:8] != _MAGIC:
            raise IntegrityError("calibration statistics are not in a known format", fix="calibrate again")
        _, low, high, count, zeros, used = _HEADER.unpack_from(data)
        expected = _HEADER.size + used * 10 + 4
        if len(data) != expected or struct.unpack("<I", data[-4:])[0] != zlib.crc32(data[:-4]):
            raise IntegrityError(
                f"calibration statistics are damaged ({len(data)} bytes, expected {expected})",
                fix="calibrate again",
            )
        counts = np.zeros(BIN_COUNT, np.int64)
        bins = np.frombuffer(data, "<u2", used, _HEADER.size)
        counts[bins] = np.frombuffer(data, "<i8", used, _HEADER.size + used * 2)
        return cls(counts, count, zeros, low, high)

    def populated(self) -> tuple[Array, Array, Array]:
        """Return (lower, upper, weight), float64, of the bins that hold anything, ascending.

        Edges are cut to the exact extremes. The bins of the two extremes always count: they were seen even when the
        stride passed them by.
        """
        lower, upper, order = _ascending_bins()
        weight = self.counts[order].astype(np.float64)
        for extreme in (self.minimum, self.maximum):
            first = int(np.searchsorted(upper, extreme, side="left"))
            last = int(np.searchsorted(lower, extreme, side="right")) - 1
            if not weight[first : last + 1].any():
                weight[last] = 1.0
        used = np.flatnonzero(weight)
        return (
            np.clip(lower[used], self.minimum, self.maximum),
            np.clip(upper[used], self.minimum, self.maximum),
            weight[used],
        )


def stride_for(size: int) -> int:
    """Return k: of a sample of `size` elements every k-th is histogrammed; 1 up to `EXACT_UP_TO`.

    k is the smallest prime that is large enough and does not divide `size`: it then divides no axis, so the
    picked elements wander over every row, column and channel instead of staying in one.
    """
    if size <= EXACT_UP_TO:
        return 1
    stride = -(-size // EXACT_UP_TO)
    while size % stride == 0 or not _is_prime(stride):
        stride += 1
    return stride


def _as_float32(array: Array) -> Array:
    if array.dtype.kind != "f":
        raise CalibrationError(
            f"a tensor of {array.dtype} has no range to observe", fix="observe floating-point tensors only"
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32).reshape(-1)


def _extremes(values: Array) -> tuple[float, float]:
    """Return exact (min, max); NaN anywhere makes both NaN."""
    chunks = [values[start : start + _CHUNK] for start in range(0, values.size, _CHUNK)]
    # Both extremes of a chunk in turn, so that the second pass reads it from cache.
    extremes = np.array([(chunk.min(), chunk.max()) for chunk in chunks])
    return float(extremes[:, 0].min()), float(extremes[:, 1].max())


def _non_finite(array: Array) -> CalibrationError:
    with np.errstate(over="ignore"):
        narrowed = array.astype(np.float32, copy=False)
    flat = int(np.flatnonzero(~np.isfinite(narrowed.reshape(-1)))[0])
    where = tuple(int(axis) for axis in np.unravel_index(flat, array.shape))
    value = array.reshape(-1)[flat]
    return CalibrationError(
        f"holds {value} at {where} (flat index {flat})",
        fix="remove the sample that gives it, or repair the model",
    )


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


@cache
def _ascending_bins() -> tuple[Array, Array, Array]:
    """Return (lower edges, upper edges, bin index) of the finite bins by ascending value, float64."""
    magnitude = np.arange(_FINITE + 1, dtype=np.uint32) << np.uint32(_SHIFT)
    edges = magnitude.view(np.float32).astype(np.float64)
    edges[-1] = 2.0**128
    positive = np.arange(_FINITE)
    lower = np.concatenate([-edges[:0:-1], edges[:-1]])
    upper = np.concatenate([-edges[-2::-1], edges[1:]])
    return lower, upper, np.concatenate([_NEGATIVE + positive[::-1], positive])

"""From what was seen to what is represented: range rules, each a pure function of a sketch.

A range is the interval that a quantiser should keep; making zero representable and rounding the zero point
are the quantiser's concern. This module must not know models, datasets or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from calibration.sketch import Sketch
from exporter.arrays import Array
from exporter.errors import CalibrationError

_BINS_PER_LEVEL = 16
_SPAN_OVER_QUANTILE = 8.0
_ENTROPY_CANDIDATES = 512
_STEPS = 16
_REFINEMENTS = 2
_ROUNDS = 2
_SMALLEST_CLIP = 1e-6
_NARROWEST = 1e-6
_TINIEST = 1e-300
_SUBNORMAL = 2.0**-126
_PERCENTILES = (99.9, 99.99, 99.999)
_MOST_ENDS = 8

CLIPPING_COST = 4.0
"""What a squared error of clipping counts for in `auto`, against 1 for one of rounding.

Rounding errors have no sign in common and average out over the products they enter; what is clipped always shrinks, and
in a transformer the same few channels every time (Bondarenko et al. 2021, "Understanding and Overcoming the Challenges
of Efficient Transformer Quantization"). `docs/calibration.md` shows what other costs give: 4 to 16 are alike.
"""


class Rule(StrEnum):
    """How a range is chosen from what was seen."""

    AUTO = "auto"
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval of values, `low` ≤ `high`; it need not hold zero."""

    low: float
    high: float


def minmax(sketch: Sketch) -> Range:
    """Return the exact extremes. Raises CalibrationError when nothing was seen."""
    _check_seen(sketch)
    return Range(sketch.minimum, sketch.maximum)


def percentile(sketch: Sketch, q: float = 99.99) -> Range:
    """Return the central interval that holds `q` percent of the elements.

    (100 - q) / 2 percent is cut from each side. Exact to the width of a bin (3.1 % of the value). 0 < q ≤ 100; at 100
    it is `minmax`.
    """
    _check_seen(sketch)
    if not 0.0 < q <= 100.0:
        raise ValueError(f"q must be in (0, 100], got {q}")
    tail = (100.0 - q) / 200.0
    bins = sketch.populated()
    return Range(_quantile(*bins, tail), _quantile(*bins, 1.0 - tail))


def mse(sketch: Sketch, levels: int = 256, *, symmetric: bool = False) -> Range:
    """Return the range whose uniform grid has the least expected squared error, clipping included.

    The grid is the quantiser's: asymmetric, `levels` - 1 steps over the range extended to zero, with an
    integer zero point; symmetric, `levels` / 2 - 1 steps on each side of zero. The ends returned are those
    of the grid itself, so they hold zero. Nagel et al. 2021, "A White Paper on Neural Network
    Quantization", §3.1, with the error integrated exactly within each bin.
    """
    _check_seen(sketch)
    if sketch.minimum == sketch.maximum:
        return minmax(sketch)
    return _ClipSearch(sketch, levels, symmetric=symmetric).best()


def entropy(sketch: Sketch, levels: int = 256, *, symmetric: bool = False) -> Range:
    """Return the range whose clipped, quantised histogram loses the least information.

    By Kullback–Leibler divergence: S. Migacz, "8-bit Inference with TensorRT" (GTC 2017), over |x|: a linear histogram
    of 16 bins a level, everything beyond a candidate folded into its last bin. Exact zeros are left out: they cost
    nothing to represent and would drown the rest after a ReLU. The larger side gets its share of the levels: all of
    them when the other is empty, half when they are alike. The histogram spans the extremes, or 8 times the 99.99th
    percentile of |x| when an outlier lies beyond that: one outlier would otherwise leave every other element in the
    first bin.
    """
    _check_seen(sketch)
    lower, upper, weight = _without_zeros(sketch)
    if weight.size == 0 or sketch.minimum == sketch.maximum:
        return minmax(sketch)
    largest = max(abs(sketch.minimum), abs(sketch.maximum))
    span = min(largest, _SPAN_OVER_QUANTILE * _quantile(*_magnitudes(lower, upper, weight), 0.9999))
    if span <= 0.0:
        return minmax(sketch)  # nothing but zeros and subnormals
    left, right = min(max(0.0, -sketch.minimum), span), min(max(0.0, sketch.maximum), span)
    groups = levels // 2 if symmetric else round(levels * max(left, right) / (left + right))
    edges = np.linspace(0.0, span, groups * _BINS_PER_LEVEL + 1)
    negative = upper <= 0.0
    histogram = _linear_histogram(lower[~negative], upper[~negative], weight[~negative], edges)
    histogram += _linear_histogram(
        -upper[negative][::-1], -lower[negative][::-1], weight[negative][::-1], edges
    )
    threshold = span * _entropy_threshold(histogram, groups)
    if symmetric:
        return Range(-threshold, threshold)
    return Range(max(sketch.minimum, -threshold), min(sketch.maximum, threshold))


def auto(sketch: Sketch) -> Range:
    """Return the range of least expected error among those of the other rules and a search of its own.

    The error is that on the quantiser's asymmetric grid of 256 levels, with what is clipped counted `CLIPPING_COST`
    times: a heavy tail that holds much of the tensor's energy is then kept, and a lone outlier is not. `mse` is
    the same search at a cost of 1, and not tried apart.
    """
    _check_seen(sketch)
    if sketch.minimum == sketch.maximum:
        return minmax(sketch)
    search = _costs_of(sketch)
    tried = [minmax(sketch), *(percentile(sketch, q) for q in _PERCENTILES), entropy(sketch)]
    tried.append(search.best())
    return tried[int(np.argmin(search.errors_of(tried)))]


def common_range(sketches: Sequence[Sketch]) -> Range:
    """Return the one range for tensors that share a grid: least weighted sum of their errors as `auto` counts them.

    A tensor's mean error counts by the inverse of its root mean square, however many elements it has: half way between
    equal absolute errors, which would leave a small tensor few levels, and equal relative ones, which would clip a large
    tensor for a negligible one's sake. Every low end and high end that `auto` or `minmax` gives for one of them, or for
    all, is tried with every other. Raises CalibrationError when a tensor was never seen.
    """
    whole = sketches[0]
    for sketch in sketches[1:]:
        whole = whole.merge(sketch)
    clips = [minmax(whole), auto(whole), *(auto(sketch) for sketch in sketches)]
    if len(sketches) == 1 or whole.minimum == whole.maximum:
        return clips[1]
    lows = _spread([min(clip.low, 0.0) for clip in clips])
    highs = _spread([max(clip.high, 0.0) for clip in clips])
    tried = [Range(low, high) for low in lows for high in highs if low < high]
    total = np.zeros(len(tried))
    for sketch in sketches:
        if loudness := _root_mean_square(sketch):
            total += _costs_of(sketch).errors_of(tried) / loudness
    return tried[int(np.argmin(total))]


def _costs_of(sketch: Sketch) -> _ClipSearch:
    return _ClipSearch(sketch, 256, symmetric=False, clipping_cost=CLIPPING_COST)


def _spread(ends: Sequence[float]) -> list[float]:
    """Return the distinct values among `ends`, or `_MOST_ENDS` of them evenly from the least to the largest."""
    distinct = sorted(set(ends))
    if len(distinct) <= _MOST_ENDS:
        return distinct
    return [distinct[round(index)] for index in np.linspace(0, len(distinct) - 1, _MOST_ENDS)]


def _root_mean_square(sketch: Sketch) -> float:
    lower, upper, weight = sketch.populated()
    # The mean of x² over a bin whose elements are spread evenly.
    squares = (lower * lower + lower * upper + upper * upper) / 3.0
    return float(np.sqrt(squares @ weight / weight.sum()))


RULES: dict[Rule, Callable[[Sketch], Range]] = {
    Rule.AUTO: auto,
    Rule.MINMAX: minmax,
    Rule.PERCENTILE: percentile,
    Rule.MSE: mse,
    Rule.ENTROPY: entropy,
}


def range_by(rule: Rule | str, sketch: Sketch) -> Range:
    """Return the range that `rule` gives with its default settings; ValueError for an unknown rule."""
    return RULES[Rule(rule)](sketch)


def expected_squared_error(
    sketch: Sketch, clip: Range, levels: int = 256, *, symmetric: bool = False
) -> float:
    """Return the mean squared error of an element when quantised onto the grid that `clip` gives."""
    _check_seen(sketch)
    return float(_ClipSearch(sketch, levels, symmetric=symmetric).errors_of([clip])[0])


def clipped_share(sketch: Sketch, clip: Range) -> float:
    """Return the share of elements, 0 to 1, beyond the ends of `clip`; exact to the width of a bin."""
    _check_seen(sketch)
    lower, upper, weight = sketch.populated()
    inside = np.minimum(upper, clip.high) - np.maximum(lower, clip.low)
    width = upper - lower
    # A bin without width (an extreme of its own) is inside or not.
    within = (lower >= clip.low) & (upper <= clip.high)
    part = np.where(within, 1.0, np.clip(inside / np.maximum(width, _TINIEST), 0.0, 1.0))
    return float(1.0 - (part @ weight) / weight.sum())


def _check_seen(sketch: Sketch) -> None:
    if sketch.count == 0:
        raise CalibrationError(
            "a tensor was empty in every sample, so it has no range",
            fix="keep it in float, or add samples that reach it",
        )


def _quantile(lower: Array, upper: Array, weight: Array, fraction: float) -> float:
    """Return the value below which `fraction` of the weight lies, each bin taken as uniform."""
    below = np.concatenate([[0.0], np.cumsum(weight)])
    wanted = fraction * below[-1]
    index = int(np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, weight.size - 1))
    if lower[index] <= 0.0 <= upper[index] and upper[index] - lower[index] < _SUBNORMAL:
        return 0.0
    share = min((wanted - below[index]) / weight[index], 1.0)
    return float(lower[index] + share * (upper[index] - lower[index]))


class _ClipSearch:
    """Search for the clip of least squared error, each bin taken as a uniform density.

    G is an antiderivative of the squared error of a grid anchored at zero with step d and ends [lo, hi]:
    inside, n·d³/12 + e³/3 with n = round(x/d) and e = x - n·d; beyond an end, the cube of the distance over
    3. The mean error of a bin is then (G(upper) - G(lower)) / width, exact whether the bin is narrower or
    wider than a step. Exact zeros cost nothing on such a grid and are left out. The part beyond the ends counts
    `clipping_cost` times.
    """

    def __init__(self, sketch: Sketch, levels: int, *, symmetric: bool, clipping_cost: float = 1.0) -> None:
        lower, upper, weight = _without_zeros(sketch)
        # In units of the largest magnitude: cubes of 1e38 or 1e-38 would leave no exact differences in
        # float64.
        self._unit = max(abs(sketch.minimum), abs(sketch.maximum)) or 1.0
        lower, upper = lower / self._unit, upper / self._unit
        narrow = upper - lower < _NARROWEST * np.maximum(np.abs(lower), np.abs(upper))
        margin = np.where(narrow, _NARROWEST * np.maximum(np.abs(lower), np.abs(upper)), 0.0)
        self._edges = np.stack([lower - margin, upper + margin])
        self._share = weight / (sketch.counts.sum() * np.maximum(self._edges[1] - self._edges[0], _TINIEST))
        self._extent = (max(0.0, -sketch.minimum) / self._unit, max(0.0, sketch.maximum) / self._unit)
        self._levels = levels
        self._symmetric = symmetric
        self._clipping_cost = clipping_cost
        self._smallest = (
            max(_quantile(*_magnitudes(lower, upper, weight), 0.5), _SMALLEST_CLIP) if weight.size else 1.0
        )

    def best(self) -> Range:
        """Return the ends of the best grid found: a common magnitude first, then each end in turn."""
        left, right = self._extent
        clips = np.geomspace(self._smallest, 1.0, 2 * _STEPS)
        magnitude = self._refined(clips, lambda size: (-np.minimum(size, left), np.minimum(size, right)))
        low, high = min(magnitude, left), min(magnitude, right)
        if low and high and not self._symmetric:
            for _ in range(_ROUNDS):
                high = self._best_high(low, np.geomspace(high / 2, min(2 * high, right), _STEPS))
                low = self._best_low(high, np.geomspace(low / 2, min(2 * low, left), _STEPS))
        _, lowest, highest = self._grid(np.array([-low]), np.array([high]))
        return Range(float(lowest[0]) * self._unit, float(highest[0]) * self._unit)

    def _best_high(self, low: float, clips: Array) -> float:
        return self._refined(clips, lambda size: (np.full_like(size, -low), size))

    def _best_low(self, high: float, clips: Array) -> float:
        return self._refined(clips, lambda size: (-size, np.full_like(size, high)))

    def _refined(self, clips: Array, ends: Callable[[Array], tuple[Array, Array]]) -> float:
        """Return the best of `clips`, looked at again more closely on both sides of the best."""
        for _ in range(_REFINEMENTS):
            index = int(np.argmin(self._errors(*ends(clips))))
            best = float(clips[index])
            clips = np.geomspace(clips[max(index - 1, 0)], clips[min(index + 1, clips.size - 1)], _STEPS // 2)
        return best

    def errors_of(self, clips: Sequence[Range]) -> Array:
        """Return the mean squared error of an element under each of `clips`, in the tensor's own units."""
        ends = np.array([(clip.low, clip.high) for clip in clips]) / self._unit
        return self._errors(ends[:, 0], ends[:, 1]) * self._unit**2

    def _grid(self, low: Array, high: Array) -> tuple[Array, Array, Array]:
        """Return (step, lowest, highest) of the grids for [low, high], with an integer zero point."""
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        if self._symmetric:
            half = self._levels // 2 - 1
            step = np.maximum(np.maximum(-low, high), _TINIEST) / half
            return step, -half * step, half * step
        step = np.maximum(high - low, _TINIEST) / (self._levels - 1)
        lowest = np.rint(low / step) * step
        return step, lowest, lowest + (self._levels - 1) * step

    def _errors(self, low: Array, high: Array) -> Array:
        """Return the mean squared error of an element for each candidate [low, high]."""
        step, lowest, highest = (end[:, None, None] for end in self._grid(low, high))
        inside = np.clip(self._edges, lowest, highest)
        nearest = np.rint(inside / step)
        rounded, clipped = inside - nearest * step, self._edges - inside
        # Products, not powers: numpy's float power is some twenty times slower.
        beyond = self._clipping_cost * clipped * clipped * clipped
        integral = nearest * (step**3 / 12.0) + (rounded * rounded * rounded + beyond) / 3.0
        return np.asarray((integral[:, 1] - integral[:, 0]) @ self._share)


def _without_zeros(sketch: Sketch) -> tuple[Array, Array, Array]:
    """Return the populated bins with the exact zeros taken out."""
    lower, upper, weight = sketch.populated()
    zeros = float(sketch.zeros)
    # 0.0 and -0.0 live in the two bins that touch zero, with the subnormals.
    for index in np.flatnonzero((lower <= 0.0) & (upper >= 0.0) & (upper - lower < _SUBNORMAL)):
        taken = min(zeros, weight[index])
        weight[index] -= taken
        zeros -= taken
    kept = weight > 0.0
    return lower[kept], upper[kept], weight[kept]


def _magnitudes(lower: Array, upper: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Return the bins of |x|, ascending by their upper edge; bins of the two signs may overlap."""
    small = np.minimum(np.abs(lower), np.abs(upper))
    large = np.maximum(np.abs(lower), np.abs(upper))
    order = np.argsort(large, kind="stable")
    return small[order], large[order], weight[order]


def _linear_histogram(lower: Array, upper: Array, weight: Array, edges: Array) -> Array:
    """Return the weight of disjoint ascending bins between `edges`; all beyond the last is in the last."""
    if weight.size == 0:
        return np.zeros(edges.size - 1)
    knots = np.stack([lower, upper], axis=1).reshape(-1)
    total = np.cumsum(weight)
    below = np.stack([total - weight, total], axis=1).reshape(-1)
    at_edges = np.interp(edges, knots, below, left=0.0)
    at_edges[-1] = total[-1]
    return np.diff(at_edges)


def _entropy_threshold(histogram: Array, groups: int) -> float:
    """Return the best threshold as a fraction of the histogram's span.

    Every sum over bins that the divergence needs is a difference of prefix sums, so all candidates are
    weighed at once: with P the clipped histogram (its tail folded into the last bin) and Q its `groups`
    averages over the non-empty bins, Σ p·log q = Σ_g S_g·log(S_g / n_g) + tail·log(S_last / n_last).
    """
    bins = histogram.size
    candidates = np.arange(groups, bins + 1, max(1, bins // _ENTROPY_CANDIDATES))
    if candidates[-1] != bins:
        candidates = np.append(candidates, bins)
    total = histogram.sum()
    filled = histogram > total * 1e-13
    mass = np.concatenate([[0.0], np.cumsum(np.where(filled, histogram, 0.0))])
    width = np.concatenate([[0], np.cumsum(filled)])
    own = np.concatenate([[0.0], np.cumsum(_x_log(histogram, histogram))])
    borders = candidates[:, None] * np.arange(groups + 1) // groups
    group_mass = np.diff(mass[borders], axis=1)
    group_width = np.diff(width[borders], axis=1)
    tail = np.maximum(mass[-1] - mass[candidates], 0.0)
    last = histogram[candidates - 1] + tail
    # The last bin is not empty once the tail is folded into it.
    group_width[:, -1] += ~filled[candidates - 1] & (tail > 0.0)
    entropy_of_p = own[candidates - 1] + _x_log(last, last)
    average = group_mass / np.maximum(group_width, 1)
    cross = _x_log(group_mass, average).sum(axis=1) + _x_log(tail, average[:, -1])
    divergence = (entropy_of_p - cross) / total + np.log(np.maximum(mass[candidates], _TINIEST) / total)
    unreachable = (tail > 0.0) & (group_mass[:, -1] <= 0.0)
    return float(candidates[int(np.argmin(np.where(unreachable, np.inf, divergence)))] / bins)


def _x_log(factor: Array, argument: Array) -> Array:
    """Return factor · log(argument), 0 where the argument is not positive."""
    return np.asarray(factor * np.log(np.where(argument > 0.0, argument, 1.0)))

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.ranges import (
    CLIPPING_COST,
    Range,
    Rule,
    auto,
    common_range,
    entropy,
    expected_squared_error,
    minmax,
    mse,
    percentile,
    range_by,
)
from calibration.sketch import Sketch
from exporter.errors import CalibrationError

SIZE = 60_000


def distributions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(SIZE)
    gate = 3 * rng.standard_normal(SIZE)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "laplace": rng.laplace(size=SIZE),
        "silu": gate / (1 + np.exp(-gate)),
        "heavy": rng.standard_t(4, SIZE),
        "positive": rng.uniform(5, 10, SIZE),
        "negative": -rng.gamma(2, 1, SIZE),
        "tiny": normal * 1e-30,
        "shifted": normal + 1.5,
    }


NAMES = sorted(distributions())


def sketch_of(values: np.ndarray) -> Sketch:
    sketch = Sketch.empty()
    for part in np.array_split(values.astype(np.float32), max(1, values.size // 30_000)):
        sketch.update(part)
    return sketch


def quantised_error(values: np.ndarray, low: float, high: float, levels: int = 256) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (levels - 1)
    zero_point = np.rint(-low / scale)
    grid = np.clip(np.rint(values / scale) + zero_point, 0, levels - 1)
    return float(np.mean(((grid - zero_point) * scale - values) ** 2))


@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32)), st.floats(50, 100)
)
def test_percentile_agrees_with_numpy_to_the_width_of_a_bin(values: np.ndarray, q: float) -> None:
    found = percentile(sketch_of(values), q)
    tail = (100 - q) / 2
    ordered = np.sort(values.astype(np.float64))
    for got, wanted in ((found.low, tail), (found.high, 100 - tail)):
        # Between two elements any value splits the data alike: the answer must lie between the neighbours.
        rank = wanted / 100 * ordered.size
        low = ordered[max(int(np.floor(rank)) - 1, 0)]
        high = ordered[min(int(np.ceil(rank)), ordered.size - 1)]
        assert low - abs(low) / 32 - 1e-38 <= got <= high + abs(high) / 32 + 1e-38


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [99.0, 99.9, 99.99])
def test_percentile_of_many_elements(name: str, q: float) -> None:
    values = distributions()[name].astype(np.float32)
    found = percentile(sketch_of(values), q)
    tail = (100 - q) / 2
    assert found.low == pytest.approx(np.percentile(values, tail), rel=0.05, abs=1e-40)
    assert found.high == pytest.approx(np.percentile(values, 100 - tail), rel=0.05, abs=1e-40)


def test_percentile_of_everything_is_minmax() -> None:
    for values in distributions().values():
        assert percentile(sketch_of(values), 100.0) == minmax(sketch_of(values))


@pytest.mark.parametrize("q", [0.0, -1.0, 100.1])
def test_percentile_refuses_what_is_no_percentage(q: float) -> None:
    with pytest.raises(ValueError, match="q must be"):
        percentile(sketch_of(np.ones(3)), q)


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("name", NAMES)
def test_mse_is_within_five_percent_of_a_brute_force_search_on_the_data(name: str, levels: int) -> None:
    values = distributions()[name]
    found = mse(sketch_of(values), levels)
    lows = np.unique(np.minimum(values.min() * np.linspace(0.1, 1, 22), 0))
    highs = np.unique(np.maximum(values.max() * np.linspace(0.1, 1, 22), 0))
    best = min(
        quantised_error(values, low, high, levels)
        for low, high in itertools.product(lows, highs)
        if low < high
    )
    assert quantised_error(values, found.low, found.high, levels) <= 1.05 * best


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_error_is_the_error_on_the_data(name: str) -> None:
    values = distributions()[name]
    for shrink in (1.0, 0.7, 0.3):
        clip = Range(min(values.min(), 0.0) * shrink, max(values.max(), 0.0) * shrink)
        expected = expected_squared_error(sketch_of(values), clip)
        assert expected == pytest.approx(quantised_error(values, clip.low, clip.high), rel=0.06)


def test_mse_symmetric_range_is_symmetric_and_near_its_best() -> None:
    values = distributions()["shifted"]
    found = mse(sketch_of(values), symmetric=True)
    assert found.low == -found.high

    def error(threshold: float) -> float:
        scale = threshold / 127
        return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))

    assert error(found.high) <= 1.05 * min(error(threshold) for threshold in np.linspace(1, 7, 60))


def test_mse_clips_a_lone_outlier_only_when_that_is_better() -> None:
    rng = np.random.default_rng(0)
    values = np.append(0.01 * rng.standard_normal(2_000_000), 0.2)
    clipped = mse(sketch_of(values), levels=16)
    assert clipped.high < 0.1
    kept = mse(sketch_of(np.append(rng.standard_normal(1000), 50.0)))
    assert kept.high == pytest.approx(50.0, rel=0.05)


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_mse_does_not_depend_on_the_unit(unit: float) -> None:
    values = np.random.default_rng(3).laplace(size=SIZE)
    one, scaled = mse(sketch_of(values)), mse(sketch_of(values * unit))
    assert scaled.high / unit == pytest.approx(one.high, rel=0.1)
    assert quantised_error(values, scaled.low / unit, scaled.high / unit) <= 1.05 * quantised_error(
        values, one.low, one.high
    )


def divergences(values: np.ndarray, groups: int, step: int) -> dict[float, float]:
    """Kullback–Leibler divergence by threshold, as Migacz writes it, on the data itself."""
    magnitude = np.abs(values[values != 0])
    bins = groups * 16
    histogram = np.histogram(magnitude, bins=bins, range=(0, magnitude.max()))[0].astype(float)
    found = {}
    for kept in range(groups, bins + 1, step):
        reference = histogram[:kept].copy()
        reference[-1] += histogram[kept:].sum()
        borders = kept * np.arange(groups + 1) // groups
        quantised = np.zeros(kept)
        for start, end in itertools.pairwise(borders):
            filled = reference[start:end] > 0
            if filled.any():
                quantised[start:end][filled] = histogram[start:end].sum() / filled.sum()
        used = reference > 0
        if np.all(quantised[used] > 0):
            p, q = reference[used] / reference.sum(), quantised[used] / quantised.sum()
            found[magnitude.max() * kept / bins] = float(np.sum(p * np.log(p / q)))
    return found


@pytest.mark.parametrize("name", ["laplace", "heavy", "normal", "relu"])
def test_entropy_agrees_with_a_plain_implementation_on_the_data(name: str) -> None:
    values = np.concatenate(
        [distributions()[name], np.random.default_rng(9).permutation(distributions()[name])]
    )
    groups = 256 if name == "relu" else 128
    found = entropy(sketch_of(values))
    threshold = max(abs(found.low), abs(found.high))
    by_threshold = divergences(values, groups, 16)
    nearest = min(by_threshold, key=lambda candidate: abs(candidate - threshold))
    # The plain histogram adds sampling noise of its own, which favours narrow ranges: compare what is lost,
    # not where.
    assert by_threshold[nearest] <= min(by_threshold.values()) + 0.25 * (
        max(by_threshold.values()) - min(by_threshold.values())
    )
    assert threshold >= np.quantile(np.abs(values), 0.99)


def test_entropy_clips_heavy_tails() -> None:
    values = distributions()["heavy"]
    found = entropy(sketch_of(values))
    assert max(-found.low, found.high) < 0.95 * np.abs(values).max()


def test_entropy_survives_an_outlier_of_any_size() -> None:
    values = np.random.default_rng(5).standard_normal(SIZE)
    for outlier in (1e2, 1e10, 3e38):
        found = entropy(sketch_of(np.append(values, outlier)))
        assert 3.0 < found.high < 40.0
        assert found.low == pytest.approx(values.min(), rel=0.3)


def test_entropy_is_not_drowned_by_zeros() -> None:
    values = np.abs(distributions()["laplace"])
    with_zeros = np.concatenate([values, np.zeros(9 * SIZE)])
    assert entropy(sketch_of(with_zeros)).high == pytest.approx(entropy(sketch_of(values)).high, rel=0.01)


def cost(values: np.ndarray, low: float, high: float) -> float:
    """The error on the quantiser's grid with clipping counted as `auto` does, on the data itself."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero_point = np.rint(-low / scale)
    steps = np.rint(values / scale) + zero_point
    error = ((np.clip(steps, 0, 255) - zero_point) * scale - values) ** 2
    beyond = (values < -zero_point * scale) | (values > (255 - zero_point) * scale)
    return float(np.mean(np.where(beyond, CLIPPING_COST, 1.0) * error))


@pytest.mark.parametrize("name", NAMES)
def test_auto_is_within_five_percent_of_a_brute_force_search_on_the_data(name: str) -> None:
    values = distributions()[name]
    found = auto(sketch_of(values))
    lows = np.unique(np.minimum(values.min() * np.linspace(0.1, 1, 22), 0))
    highs = np.unique(np.maximum(values.max() * np.linspace(0.1, 1, 22), 0))
    best = min(cost(values, low, high) for low, high in itertools.product(lows, highs) if low < high)
    assert cost(values, found.low, found.high) <= 1.05 * best


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(0.1, 3.0), st.floats(-2, 2), st.sampled_from(["t", "gamma", "normal"])
)
def test_auto_is_not_worse_on_the_data_than_any_rule(
    seed: int, shape: float, shift: float, family: str
) -> None:
    """For densities that are smooth across a bin: within one the sketch knows no more than their number."""
    rng = np.random.default_rng(seed)
    drawn = {
        "t": lambda: rng.standard_t(2 + shape, 30_000),
        "gamma": lambda: rng.gamma(1 + shape, 1, 30_000),
        "normal": lambda: rng.standard_normal(30_000),
    }[family]
    values = ((drawn() + shift) * shape).astype(np.float32).astype(np.float64)
    sketch = sketch_of(values)
    found = auto(sketch)
    for rule in Rule:
        other = range_by(rule, sketch)
        assert cost(values, found.low, found.high) <= 1.06 * cost(values, other.low, other.high)


def test_auto_keeps_the_outliers_that_carry_the_energy() -> None:
    """What transformers do: a few elements in ten thousand, forty times as large as the rest."""
    rng = np.random.default_rng(11)
    values = rng.standard_normal(200_000)
    values[::5000] = 40 + rng.standard_normal(40)
    found = auto(sketch_of(values))
    assert found.high >= 0.97 * values.max()
    assert percentile(sketch_of(values), 99.9).high < 10


def test_auto_clips_no_more_than_mse() -> None:
    for name in ("normal", "laplace", "heavy", "silu"):
        sketch = sketch_of(distributions()[name])
        kept, tight = auto(sketch), mse(sketch)
        assert kept.high - kept.low >= 0.99 * (tight.high - tight.low)


def test_auto_clips_a_thin_tail() -> None:
    values = np.append(0.01 * np.random.default_rng(0).standard_normal(4_000_000), [0.09])
    assert auto(sketch_of(values)).high < 0.089


def test_a_common_range_is_near_that_of_a_brute_force_search() -> None:
    given = distributions()
    tensors = [3 * given["relu"], given["laplace"], 0.2 * given["silu"]]
    found = common_range([sketch_of(values) for values in tensors])

    def total(low: float, high: float) -> float:
        return sum(cost(values, low, high) / np.sqrt(np.mean(values**2)) for values in tensors)

    lows, highs = np.linspace(-14, 0, 40), np.linspace(1, 16, 40)
    best = min(total(low, high) for low, high in itertools.product(lows, highs))
    assert total(found.low, found.high) <= 1.10 * best


def test_a_common_range_of_one_or_of_equals_is_its_own() -> None:
    sketch = sketch_of(distributions()["laplace"])
    assert common_range([sketch]) == auto(sketch)
    alike = common_range([sketch, sketch])
    values = distributions()["laplace"]
    assert cost(values, alike.low, alike.high) <= 1.01 * cost(values, auto(sketch).low, auto(sketch).high)


def test_a_tensor_of_zeros_asks_nothing_of_a_common_range() -> None:
    sketch, zeros = sketch_of(distributions()["silu"]), sketch_of(np.zeros(1000))
    values = distributions()["silu"]
    found = common_range([zeros, sketch])
    assert cost(values, found.low, found.high) <= 1.01 * cost(values, auto(sketch).low, auto(sketch).high)
    assert common_range([zeros, zeros]) == Range(0.0, 0.0)


def test_a_common_range_does_not_depend_on_order_nor_on_the_number_of_elements() -> None:
    given = distributions()
    one, other = given["relu"], 4 * given["laplace"]
    found = common_range([sketch_of(one), sketch_of(other)])
    assert common_range([sketch_of(other), sketch_of(one)]) == found
    often = common_range([sketch_of(np.tile(one, 5)), sketch_of(other)])
    assert often.high == pytest.approx(found.high, rel=0.1)


def test_a_common_range_of_many_tensors_and_of_extreme_ones_is_finite() -> None:
    rng = np.random.default_rng(2)
    many = [sketch_of(rng.standard_normal(500) * scale) for scale in np.geomspace(0.1, 10, 20)]
    found = common_range(many)
    assert found.low < -10 < 10 < found.high
    extreme = common_range([sketch_of(np.array([3e38, 1.0])), sketch_of(np.array([-1e-40, 1e-38]))])
    assert extreme.high == pytest.approx(3e38, rel=0.01)


def test_a_common_range_refuses_what_was_never_seen() -> None:
    with pytest.raises(CalibrationError, match="empty in every sample"):
        common_range([sketch_of(np.ones(3)), Sketch.empty()])


def test_entropy_symmetric_range_is_symmetric() -> None:
    found = entropy(sketch_of(distributions()["shifted"]), symmetric=True)
    assert found.low == -found.high


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_a_single_value_is_kept_by_every_rule(rule: Rule, value: float) -> None:
    found = range_by(rule, sketch_of(np.full(10, value)))
    assert found.low == pytest.approx(value)
    assert found.high == pytest.approx(value)


@pytest.mark.parametrize("rule", list(Rule))
def test_every_rule_refuses_a_tensor_that_was_never_seen(rule: Rule) -> None:
    with pytest.raises(CalibrationError, match="empty in every sample"):
        range_by(rule, Sketch.empty())


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_every_rule_gives_a_finite_ordered_range_for_any_data(values: np.ndarray) -> None:
    for rule in Rule:
        found = range_by(rule, sketch_of(values))
        assert np.isfinite([found.low, found.high]).all()
        assert found.low <= found.high


@pytest.mark.parametrize("rule", list(Rule))
def test_rules_do_not_depend_on_how_the_data_was_split(rule: Rule) -> None:
    values = distributions()["heavy"].astype(np.float32)
    whole = sketch_of(values)
    parts = [sketch_of(part) for part in np.array_split(values, 7)]
    total = Sketch.empty()
    for part in reversed(parts):
        total = total.merge(part)
    assert range_by(rule, total) == range_by(rule, whole)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration import sketch as module
from calibration.sketch import BIN_COUNT, EXACT_UP_TO, Sketch, stride_for
from exporter.errors import CalibrationError, IntegrityError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=12), elements=FINITE)


def sketch_of(*arrays: np.ndarray) -> Sketch:
    sketch = Sketch.empty()
    for array in arrays:
        sketch.update(array)
    return sketch


def merged(*sketches: Sketch) -> Sketch:
    total = Sketch.empty()
    for sketch in sketches:
        total = total.merge(sketch)
    return total


@given(st.lists(ARRAYS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_split_and_merging_change_nothing(arrays: list[np.ndarray], random: object) -> None:
    whole = sketch_of(*arrays)
    shuffled = list(arrays)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sketch_of(*shuffled).to_bytes() == whole.to_bytes()
    assert merged(*(sketch_of(array) for array in shuffled)).to_bytes() == whole.to_bytes()
    left, right = sketch_of(*arrays[:2]), sketch_of(*arrays[2:])
    assert left.merge(right) == right.merge(left) == whole


@given(ARRAYS)
def test_small_samples_do_not_depend_on_the_batch(array: np.ndarray) -> None:
    assert sketch_of(array) == sketch_of(*array) == sketch_of(array.T)


@given(ARRAYS)
def test_extremes_count_and_zeros_are_exact(array: np.ndarray) -> None:
    sketch = sketch_of(array)
    assert (sketch.minimum, sketch.maximum) == (array.min(), array.max())
    assert sketch.count == array.size == sketch.counts.sum()
    assert sketch.zeros == np.count_nonzero(array == 0)


@given(hnp.arrays(np.float32, 50, elements=FINITE))
def test_every_element_lies_in_its_bin(array: np.ndarray) -> None:
    for value in array:
        lower, upper, weight = sketch_of(np.array([value])).populated()
        assert weight.tolist() == [1.0]
        assert lower[0] <= value <= upper[0]
        index = int(np.flatnonzero(sketch_of(np.array([value])).counts)[0])
        low, high, order = module._ascending_bins()
        place = int(np.flatnonzero(order == index)[0])
        if abs(value) >= 2.0**-126:
            assert high[place] - low[place] <= abs(value) / 32 * (1 + 1e-6)


def test_bins_are_ascending_and_touch() -> None:
    lower, upper, order = module._ascending_bins()
    assert np.all(lower[1:] == upper[:-1])
    assert np.all(upper >= lower)
    assert sorted(order.tolist()) == [
        i for i in range(BIN_COUNT) if i % (BIN_COUNT // 2) < BIN_COUNT // 2 - 32
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_elements_are_named_and_nothing_is_taken(bad: float) -> None:
    array = np.ones((1, 2, 3), np.float32)
    array[0, 1, 2] = bad
    sketch = sketch_of(np.ones(3, np.float32))
    before = sketch.to_bytes()
    with pytest.raises(CalibrationError, match=r"\(0, 1, 2\) \(flat index 5\)") as caught:
        sketch.update(array)
    assert str(bad) in caught.value.cause
    assert sketch.to_bytes() == before


def test_a_float64_beyond_float32_is_refused_as_infinite() -> None:
    with pytest.raises(CalibrationError, match=r"1e\+300"):
        sketch_of(np.array([1.0, 1e300]))


def test_integers_have_no_range() -> None:
    with pytest.raises(CalibrationError, match="int64"):
        sketch_of(np.arange(3))


def test_an_empty_array_changes_nothing() -> None:
    assert sketch_of(np.zeros((1, 0, 4), np.float32)) == Sketch.empty()


@given(st.integers(1, 4_000_000))
def test_stride_is_coprime_with_the_size_and_keeps_enough(size: int) -> None:
    stride = stride_for(size)
    if size <= EXACT_UP_TO:
        assert stride == 1
    else:
        assert np.gcd(stride, size) == 1
        assert EXACT_UP_TO / 16 < size / stride <= EXACT_UP_TO


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_strided_histogram_keeps_exact_extremes_and_the_distribution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((1, 8, 160, 160)).astype(np.float32)
    array[0, 3, 5, 7], array[0, 4, 9, 1] = 77.0, -88.0
    sketch = sketch_of(array)
    assert (sketch.minimum, sketch.maximum, sketch.count) == (-88.0, 77.0, array.size)
    assert abs(int(sketch.counts.sum()) - array.size) < stride_for(array.size)
    assert sketch.counts[: BIN_COUNT // 2].sum() / array.size == pytest.approx(0.5, abs=0.01)
    lower, upper, _ = sketch.populated()
    assert (lower[0], upper[-1]) == (-88.0, 77.0)


@given(st.lists(ARRAYS, max_size=3))
def test_bytes_round_trip(arrays: list[np.ndarray]) -> None:
    sketch = sketch_of(*arrays)
    assert Sketch.from_bytes(sketch.to_bytes()) == sketch


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    good = sketch_of(np.linspace(-3, 3, 40, dtype=np.float32)).to_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(flipped), good[:place]):
        with pytest.raises(IntegrityError):
            Sketch.from_bytes(bad)


def test_zero_of_either_sign_gives_the_same_bytes_in_any_order() -> None:
    one, two = np.array([0.0], np.float32), np.array([-0.0], np.float32)
    assert sketch_of(one, two).to_bytes() == sketch_of(two, one).to_bytes()

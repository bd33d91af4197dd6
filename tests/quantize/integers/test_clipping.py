from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import GateError
from exporter.quantize.integers.clipping import mse_scales
from exporter.quantize.integers.grid import SMALLEST_SCALE
from exporter.quantize.integers.weights import quantize_per_channel


def error_of(channel: np.ndarray, scale: float, bits: int) -> float:
    limit = 2 ** (bits - 1) - 1
    values = channel.astype(np.float64)
    return float(np.sum((np.clip(np.rint(values / scale), -limit, limit) * scale - values) ** 2))


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 80)),
        elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
    ),
    st.sampled_from([4, 8]),
)
def test_no_channel_is_worse_than_scaled_to_its_largest(weight: np.ndarray, bits: int) -> None:
    scales = mse_scales(weight, 0, bits)
    largest = quantize_per_channel(weight, 0, bits)[1]
    for channel, found, plain in zip(weight, scales, largest, strict=True):
        assert error_of(channel, found, bits) <= error_of(channel, plain, bits) * (1 + 1e-6) + 1e-30


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["normal", "laplace", "outlier", "uniform"])
def test_errors_are_near_those_of_a_brute_force_search(name: str, bits: int) -> None:
    rng = np.random.default_rng(4)
    weight = {
        "normal": rng.standard_normal((16, 600)),
        "laplace": rng.laplace(size=(16, 600)),
        "outlier": np.concatenate([rng.standard_normal((16, 4000)), np.full((16, 1), 9.0)], axis=1),
        "uniform": rng.uniform(-1, 1, (16, 600)),
    }[name].astype(np.float32)
    found = mse_scales(weight, 0, bits)
    plain = quantize_per_channel(weight, 0, bits)[1]
    best = [
        min(error_of(channel, scale * shrink, bits) for shrink in np.linspace(0.1, 1.0, 800))
        for channel, scale in zip(weight, plain, strict=True)
    ]
    got = [error_of(channel, scale, bits) for channel, scale in zip(weight, found, strict=True)]
    assert np.all(np.array(got) <= 1.05 * np.array(best))
    if name == "outlier":
        share = 0.8 if bits == 4 else 0.98
        assert sum(got) < share * sum(
            error_of(row, scale, bits) for row, scale in zip(weight, plain, strict=True)
        )


def test_the_axis_is_that_of_the_channels() -> None:
    weight = np.random.default_rng(1).laplace(size=(5, 7, 3, 3)).astype(np.float32)
    by_input = mse_scales(weight, 1)
    assert by_input.shape == (7,)
    assert np.array_equal(by_input, mse_scales(np.ascontiguousarray(weight.swapaxes(0, 1)), 0))


def test_a_large_weight_gives_the_same_as_its_channels_alone() -> None:
    weight = np.random.default_rng(2).laplace(size=(300, 700)).astype(np.float32)
    alone = np.concatenate([mse_scales(row[None], 0) for row in weight])
    assert np.array_equal(mse_scales(weight, 0), alone)


def test_channels_of_zeros_and_of_extreme_values() -> None:
    weight = np.zeros((4, 50), np.float32)
    weight[1] = 1e-40
    weight[2, :2] = 3e38, -3e38
    weight[3, 0] = 3e38
    weight[3, 1:] = 1.0
    scales = mse_scales(weight, 0)
    assert scales[0] == scales[1] == SMALLEST_SCALE
    assert np.isfinite(scales).all()
    assert scales[3] == pytest.approx(3e38 / 127)
    assert mse_scales(np.zeros((3, 0), np.float32), 0).tolist() == [SMALLEST_SCALE] * 3


def test_the_weight_is_not_changed() -> None:
    weight = np.random.default_rng(3).standard_normal((4, 9)).astype(np.float32)
    before = weight.copy()
    mse_scales(weight, 0)
    assert np.array_equal(weight, before)


def test_a_weight_that_is_not_finite_is_named() -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = np.nan
    with pytest.raises(GateError, match=r"\(1, 2\)"):
        mse_scales(weight, 0)

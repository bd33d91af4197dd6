"""The numpy primitives against the ONNX specification, exhaustive search, and their own promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from quantize_graphs import weights

from exporter.errors import GateError, UsageError
from exporter.quantize.integers.grid import SMALLEST_SCALE
from exporter.quantize.integers.weights import (
    Blocks,
    dequantize_blocks,
    dequantize_per_channel,
    pack,
    quantize_blocks,
    quantize_per_channel,
    round_to_bfloat16,
    unpack,
)

ORDINARY = st.floats(-100, 100, width=32)
ANY_SIZE = st.floats(-(2.0**100), 2.0**100, width=32)


def dequantize_by_specification(
    integers: NDArray[np.generic],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.generic],
    axis: int,
    block_size: int = 0,
) -> NDArray[np.float32]:
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis, block_size=block_size)
    kind = helper.np_dtype_to_tensor_dtype(integers.dtype)
    inputs = [
        helper.make_tensor_value_info("q", kind, integers.shape),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, scales.shape),
        helper.make_tensor_value_info("z", kind, zero_points.shape),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "reference", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (values,) = ReferenceEvaluator(model).run(None, {"q": integers, "s": scales, "z": zero_points})
    return np.asarray(values, np.float32)


@settings(deadline=None, max_examples=150)
@given(
    weight=hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4), elements=ANY_SIZE), data=st.data()
)
def test_per_channel_rounds_to_the_nearest_step(weight: NDArray[np.float32], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    integers, scales = quantize_per_channel(weight, axis)
    assert integers.dtype == np.int8
    assert scales.dtype == np.float32
    assert integers.min() >= -127
    assert np.all(scales >= SMALLEST_SCALE)
    restored = dequantize_per_channel(integers, scales, axis)
    zeros = np.zeros(scales.shape, np.int8)
    np.testing.assert_array_equal(restored, dequantize_by_specification(integers, scales, zeros, axis))
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    half_step = 0.5001 * scales.astype(np.float64).reshape(shape)
    assert np.all(np.abs(restored.astype(np.float64) - weight) <= half_step)


def test_per_channel_uses_the_whole_range_of_each_channel() -> None:
    weight = weights((16, 40)) * np.logspace(-6, 3, 16, dtype=np.float32)[:, None]
    integers, _ = quantize_per_channel(weight, 0)
    np.testing.assert_array_equal(np.abs(integers.astype(int)).max(axis=1), 127)


def test_a_channel_of_zeros_stays_zero_with_a_normal_scale() -> None:
    weight = weights((3, 8))
    weight[1] = 0
    integers, scales = quantize_per_channel(weight, 0)
    assert scales[1] == SMALLEST_SCALE > np.finfo(np.float32).smallest_normal
    assert not integers[1].any()


def test_fewer_bits_use_a_smaller_range() -> None:
    integers, _ = quantize_per_channel(weights((4, 64)), 0, bits=4)
    assert set(np.abs(integers.astype(int)).max(axis=1)) == {7}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    weight = weights((4, 32))
    weight[2, 5] = value
    for quantize in (lambda: quantize_per_channel(weight, 0), lambda: quantize_blocks(weight, 16)):
        with pytest.raises(GateError, match=r"\(2, 5\)"):
            quantize()


@settings(deadline=None, max_examples=60)
@given(
    weight=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=ORDINARY),
    block_size=st.sampled_from([16, 32, 64]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
)
def test_blocks_mean_what_the_specification_says(
    weight: NDArray[np.float32], block_size: int, bits: int, symmetric: bool
) -> None:
    blocks = quantize_blocks(weight, block_size, bits, symmetric=symmetric)
    rows, columns = weight.shape
    count = -(-columns // block_size)
    assert blocks.packed.shape == (rows, count, block_size * bits // 8)
    assert blocks.block_size == block_size
    np.testing.assert_array_equal(blocks.scales, round_to_bfloat16(blocks.scales))
    integers = unpack(blocks.packed, bits, block_size).reshape(rows, -1)
    if blocks.zero_points is None:
        zero_points = np.full((rows, count), 2 ** (bits - 1), np.uint8)
    else:
        zero_points = unpack(blocks.zero_points, bits, count)
    expected = dequantize_by_specification(integers, blocks.scales, zero_points, 1, block_size=block_size)
    np.testing.assert_array_equal(dequantize_blocks(blocks), expected[:, :columns])
    np.testing.assert_array_equal(expected[:, columns:], 0)  # what pads a block is exactly zero


def squared_error(blocks: Blocks, weight: NDArray[np.float32]) -> NDArray[np.float64]:
    errors: NDArray[np.float64] = np.square(dequantize_blocks(blocks).astype(np.float64) - weight)
    return np.asarray(errors.sum(axis=1))


@pytest.mark.parametrize("tails", [3, 5, 1000])
def test_four_bit_blocks_come_close_to_exhaustive_search(tails: int) -> None:
    weight = np.random.default_rng(1).standard_t(tails, (200, 32)).astype(np.float32)
    least = np.full(len(weight), np.inf)
    for zero_point in range(16):
        for fraction in np.linspace(0.3, 1.2, 120):
            scale = fraction * np.ptp(weight, axis=1, keepdims=True) / 15
            integers = np.clip(np.rint(weight / scale) + zero_point, 0, 15)
            error = np.square((integers - zero_point) * scale - weight).sum(axis=1)
            least = np.minimum(least, error)
    assert squared_error(quantize_blocks(weight, 32), weight).sum() <= 1.1 * least.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_clipping_never_loses_against_the_plain_range(symmetric: bool, block_size: int) -> None:
    weight = weights((300, block_size))
    fitted = squared_error(quantize_blocks(weight, block_size, symmetric=symmetric), weight)
    if symmetric:
        peak = np.take_along_axis(weight, np.abs(weight).argmax(axis=1)[:, None], axis=1)
        scale, zero_point = round_to_bfloat16(np.ascontiguousarray(peak / -8)), np.float32(8)
    else:
        low = np.minimum(weight.min(axis=1, keepdims=True), 0)
        scale = round_to_bfloat16((np.maximum(weight.max(axis=1, keepdims=True), 0) - low) / np.float32(15))
        zero_point = np.clip(np.rint(-low / scale), 0, 15)
    integers = np.clip(np.rint(weight / scale) + zero_point, 0, 15)
    plain = np.square(((integers - zero_point) * scale).astype(np.float64) - weight).sum(axis=1)
    assert np.all(fitted <= plain * (1 + 1e-4))
    assert fitted.sum() < 0.95 * plain.sum()


def test_zero_points_lose_less_than_their_bytes_would_buy() -> None:
    """Half a byte a block is 0.125 bit a weight at block 32, worth 0.75 dB; on heavy tails it buys more."""
    weight = np.random.default_rng(2).laplace(size=(400, 320)).astype(np.float32)
    plain = squared_error(quantize_blocks(weight, 32, symmetric=True), weight).sum()
    shifted = squared_error(quantize_blocks(weight, 32), weight).sum()
    assert 10 * np.log10(plain / shifted) > 0.75


def test_blocks_of_zeros_and_of_one_sign() -> None:
    weight = np.zeros((3, 32), np.float32)
    weight[1] = 0.5
    weight[2] = np.linspace(-3, -1, 32, dtype=np.float32)
    for symmetric in (True, False):
        restored = dequantize_blocks(quantize_blocks(weight, 32, symmetric=symmetric))
        np.testing.assert_array_equal(restored[0], 0)
        np.testing.assert_allclose(restored[1], 0.5, rtol=0.01)
        np.testing.assert_allclose(restored[2], weight[2], atol=0.21)


def test_rows_are_quantised_alike_however_many_there_are() -> None:
    """Rows are worked on in portions to keep memory flat; a portion's border must not show."""
    weight = weights((4096 + 3, 512))
    whole = quantize_blocks(weight, 32)
    for part in (slice(0, 5), slice(2046, 2052), slice(4090, None)):
        alone = quantize_blocks(weight[part], 32)
        np.testing.assert_array_equal(whole.packed[part], alone.packed)
        np.testing.assert_array_equal(whole.scales[part], alone.scales)


@given(
    integers=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3), elements=st.integers(0, 15)),
    bits=st.sampled_from([4, 8]),
)
def test_unpacking_undoes_packing(integers: NDArray[np.uint8], bits: int) -> None:
    packed = pack(integers, bits)
    assert packed.shape[-1] == -(-integers.shape[-1] * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, integers.shape[-1]), integers)


def test_the_first_of_two_integers_is_in_the_low_half() -> None:
    np.testing.assert_array_equal(pack(np.array([1, 2, 15], np.uint8), 4), [0x21, 0x0F])


@given(value=st.floats(-(2.0**100), 2.0**100, width=32))
def test_bfloat16_rounding_is_to_the_nearest(value: float) -> None:
    (rounded,) = round_to_bfloat16(np.array([value], np.float32))
    if abs(value) >= 2.0**-100:
        assert abs(float(rounded) - value) <= abs(value) * 2.0**-8
    assert np.float32(rounded).view(np.uint32) & 0xFFFF == 0


def test_bfloat16_ties_go_to_even() -> None:
    halfway = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)
    np.testing.assert_array_equal(round_to_bfloat16(halfway), np.array([1, 1 + 2.0**-6], np.float32))


@pytest.mark.parametrize(("block_size", "bits"), [(8, 4), (48, 4), (512, 8), (32, 5)])
def test_a_block_without_a_kernel_is_refused(block_size: int, bits: int) -> None:
    with pytest.raises(UsageError, match=f"blocks of {block_size}"):
        quantize_blocks(weights((2, 64)), block_size, bits)

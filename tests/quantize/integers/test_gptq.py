"""GPTQ against brute force, against the algorithm as published, and against plain rounding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import UsageError
from exporter.quantize.integers.gptq import DAMPING, output_error, round_blocks, round_channels
from exporter.quantize.integers.weights import dequantize_blocks, quantize_blocks, quantize_per_channel


def inputs(rng: np.random.Generator, rows: int, width: int, rank: int) -> np.ndarray:
    """Correlated inputs: `rank` directions and a little noise."""
    mixed = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, width))
    return (mixed + 0.2 * rng.normal(size=(rows, width))).astype(np.float32)


def published(weight: np.ndarray, hessian: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    """GPTQ as Frantar et al. write it (algorithm 1, act-order), in torch float64: an independent implementation."""
    order = np.argsort(-np.diagonal(hessian.astype(np.float32)), kind="stable")
    w = torch.from_numpy(weight[:, order].astype(np.float64))
    h = torch.from_numpy(hessian[np.ix_(order, order)].astype(np.float64))
    h = h + DAMPING * torch.diagonal(h).mean() * torch.eye(len(h), dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    step = torch.from_numpy(scales.astype(np.float64))
    integers = torch.empty_like(w)
    for column in range(w.shape[1]):
        q = torch.clamp(torch.round(w[:, column] / step), -limit, limit)
        integers[:, column] = q
        error = (w[:, column] - q * step) / inverse[column, column]
        w[:, column + 1 :] -= error[:, None] * inverse[column, column + 1 :][None]
    back = np.empty(weight.shape)
    back[:, order] = integers.numpy()
    return back


@pytest.mark.parametrize("seed", range(5))
def test_it_rounds_as_the_published_algorithm_does(seed):
    rng = np.random.default_rng(seed)
    x = inputs(rng, 400, 40, 12)
    hessian, weight = x.T @ x, rng.normal(size=(24, 40)).astype(np.float32)
    scales = quantize_per_channel(weight, 0, 4)[1]
    ours, theirs = round_channels(weight, hessian, scales, 4), published(weight, hessian, scales, 7)
    # Ties and float32 against float64 may turn a rounding here and there, and what follows from it.
    same_rows = np.all(ours == theirs, axis=1).mean()
    assert same_rows > 0.8
    error = output_error(weight - ours * scales[:, None], hessian).sum()
    assert error <= 1.02 * output_error(weight - theirs * scales[:, None], hessian).sum()


def test_it_closes_most_of_the_gap_to_the_best_of_all_roundings():
    """A greedy method need not find the best for every row; over many it must come close to it."""
    lost, found, best = 0.0, 0.0, 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = inputs(rng, 100, 6, 2)
        hessian, weight = (x.T @ x).astype(np.float64), rng.normal(size=(1, 6)).astype(np.float32)
        scales = quantize_per_channel(weight, 0, 4)[1]
        choices = [(np.floor(v), np.ceil(v)) for v in weight[0] / scales[0]]
        errors = [
            output_error((weight[0] - np.array(pick) * scales[0])[None], hessian)[0]
            for pick in itertools.product(*choices)
        ]
        plain = output_error(weight - quantize_per_channel(weight, 0, 4)[0] * scales[:, None], hessian)[0]
        ours = output_error(weight - round_channels(weight, hessian, scales, 4) * scales[:, None], hessian)[0]
        assert ours <= plain + 1e-9
        lost, found, best = lost + plain, found + ours, best + min(errors)
    assert lost > 2 * best, "plain rounding leaves a gap to close"
    assert found <= best + 0.4 * (lost - best)


@given(
    st.integers(1, 12), st.integers(1, 70), st.sampled_from([16, 32, 64]), st.sampled_from([4, 8]), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_blocks_are_never_worse_than_plain_rounding(rows, width, block, bits, symmetric, seed):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(rows, width)) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
    x = inputs(rng, 30, width, max(1, width // 4))
    hessian = x.T @ x
    plain = quantize_blocks(weight, block, bits, symmetric=symmetric)
    ours = round_blocks(weight, hessian, block, bits, symmetric=symmetric)
    assert np.array_equal(ours.scales, plain.scales) and ours.packed.shape == plain.packed.shape
    assert (ours.zero_points is None) == symmetric and ours.columns == width
    before = output_error(weight - dequantize_blocks(plain), hessian)
    after = output_error(weight - dequantize_blocks(ours), hessian)
    assert (after <= before * (1 + 1e-4) + 1e-6 * np.square(weight).sum()).all()


def test_correlated_inputs_gain_decibels():
    rng = np.random.default_rng(0)
    x = inputs(rng, 2000, 256, 64)
    hessian, weight = x.T @ x, rng.normal(size=(64, 256)).astype(np.float32)
    before = output_error(weight - dequantize_blocks(quantize_blocks(weight, 32)), hessian).sum()
    after = output_error(weight - dequantize_blocks(round_blocks(weight, hessian, 32)), hessian).sum()
    assert 10 * np.log10(before / after) > 6


@pytest.mark.parametrize("kind", ["zero", "one input", "dead columns"])
def test_degenerate_inputs_are_rounded_plainly_or_better(kind):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(8, 48)).astype(np.float32)
    x = rng.normal(size=(1 if kind == "one input" else 50, 48)).astype(np.float32)
    if kind == "zero":
        x[:] = 0
    if kind == "dead columns":
        x[:, ::2] = 0
    hessian = x.T @ x
    scales = quantize_per_channel(weight, 0)[1]
    integers = round_channels(weight, hessian, scales)
    assert np.abs(integers).max() <= 127
    plain = quantize_per_channel(weight, 0)[0]
    if kind == "zero":
        assert np.array_equal(integers, plain)
    error = output_error(weight - integers * scales[:, None], hessian).sum()
    assert error <= output_error(weight - plain * scales[:, None], hessian).sum() * (1 + 1e-4) + 1e-9


def test_equal_inputs_give_equal_bytes_and_other_shapes_are_refused():
    rng = np.random.default_rng(2)
    x = inputs(rng, 200, 96, 20)
    weight = rng.normal(size=(16, 96)).astype(np.float32)
    first, again = (round_blocks(weight, x.T @ x, 32).packed for _ in range(2))
    assert first.tobytes() == again.tobytes()
    with pytest.raises(UsageError, match="not square"):
        round_channels(weight, x, quantize_per_channel(weight, 0)[1])

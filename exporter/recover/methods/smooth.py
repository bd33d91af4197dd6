"""Difficulty moved from activations to weights: outlier channels behind a LayerNormalization are scaled down, the rows
of the weights that read them up.

Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", equation 4:
s_j = max|x_j|^α / max|w_j|^(1−α), divided out of the norm's scale and bias and multiplied into the weights. The float
function stays what it was. α is not fixed at 0.5: each norm takes, from a small grid that holds "not at all", the one
with the least expected error of its readers' outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.model.graph import constant_of, consumers, is_constant, matches
from exporter.quantize.integers.rewrite import constant_matrix, is_matrix_product, is_transposed
from exporter.quantize.integers.weights import dequantize_per_channel, quantize_per_channel
from exporter.recover.methods.base import Candidate, Recovered, Workbench
from exporter.recover.methods.observe import observe

ALPHAS = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
"""Exponents that are tried; 0.5 is the paper's. Left as it is counts as one more."""
MOST_SAMPLES = 32
_ROWS_KEPT = 256
_SMALLEST = 1e-5
_WORTH_IT = 0.98
"""A norm is smoothed if that leaves less than this share of the error: a tie changes nothing."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A norm whose scale and bias are constants, and the products that read it: all its readers."""

    norm: str
    value: str
    scale: str
    bias: str | None
    readers: tuple[str, ...]


def smooth(candidate: Candidate, bench: Workbench) -> Recovered:
    """Return `candidate` with outlier channels behind norms moved into the weights, and ranges chosen anew."""
    pairs = _pairs(candidate)
    if not pairs:
        return Recovered(candidate, 0, {"pairs": 0})
    samples = list(itertools.islice(iter(bench.samples), MOST_SAMPLES))
    inputs = _inputs(candidate.model, pairs, samples)
    smoothed = candidate.model.clone()
    chosen: dict[str, float] = {}
    for number, pair in enumerate(pairs, start=1):
        nodes = [node for node in smoothed.graph if node.name in pair.readers]
        alpha, factors = _best(inputs[pair.value], [_rows_of(node) for node in nodes])
        if alpha is not None:
            chosen[pair.norm] = alpha
            _fold(smoothed, pair, nodes, factors)
        bench.advance(number, len(pairs))
    if not chosen:
        return Recovered(candidate, 0, {"pairs": len(pairs), "smoothed": 0})
    encodings = candidate.encodings
    ranges = bench.encode(smoothed, encodings.keep)
    settled = Candidate(smoothed, replace(encodings, ranges=ranges or encodings.ranges))
    return Recovered(settled, len(chosen), {"pairs": len(pairs), "smoothed": len(chosen), "alpha": chosen})


def _pairs(candidate: Candidate) -> list[_Pair]:
    found = []
    for node in candidate.model.graph:
        if node.op_type != "LayerNormalization" or node.attributes.get_int("axis", -1) not in {-1, 2}:
            continue
        value = node.outputs[0]
        readers = consumers(value)
        fits = bool(readers) and not value.is_graph_output() and all(_reads(node, value) for node in readers)
        kept = any(matches(reader.name or "", candidate.encodings.keep) for reader in readers)
        scale, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        constant = is_constant(scale) and (bias is None or is_constant(bias))
        if fits and constant and not kept and scale is not None:
            names = tuple(reader.name or "" for reader in readers)
            found.append(
                _Pair(
                    node.name or "",
                    value.name or "",
                    scale.name or "",
                    None if bias is None else bias.name,
                    names,
                )
            )
    return found


def _reads(node: ir.Node, value: ir.Value) -> bool:
    """Whether `node` multiplies `value` by a matrix of its own, whose rows can be scaled."""
    if not is_matrix_product(node) or is_transposed(node) or node.inputs[0] is not value:
        return False
    matrix = constant_matrix(node)
    if matrix is None or node.inputs[1] is not matrix.source:
        return False
    return len(consumers(matrix.source)) == 1


def _rows_of(node: ir.Node) -> NDArray[np.float32]:
    """Return the weight of a product as `[N, K]`, a column for each channel of its input."""
    matrix = constant_matrix(node)
    if matrix is None:
        raise TypeError(f"{node.name} was taken for a product with a constant matrix")
    return matrix.rows()


def _inputs(
    model: ir.Model, pairs: Sequence[_Pair], samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, NDArray[np.float32]]:
    """Return rows `[rows, K]` that each norm gave, spread over the samples, with each sample's extremes kept."""
    kept: dict[str, list[NDArray[np.float32]]] = {pair.value: [] for pair in pairs}
    for observed in observe(model, list(kept), samples):
        for name, rows in kept.items():
            flat = observed[name].reshape(-1, observed[name].shape[-1])
            extremes = np.unique(np.concatenate([np.abs(flat).argmax(axis=0)]))
            even = np.arange(0, len(flat), max(1, len(flat) * len(samples) // _ROWS_KEPT))
            rows.append(flat[np.union1d(even, extremes[: _ROWS_KEPT // 4])])
    return {name: np.concatenate(rows) for name, rows in kept.items()}


def _best(
    inputs: NDArray[np.float32], weights: Sequence[NDArray[np.float32]]
) -> tuple[float | None, NDArray[np.float32]]:
    """Return α and the factors s `[K]` of the least error of the readers' outputs; `None`: leave it as it is."""
    activation = np.maximum(np.abs(inputs).max(axis=0), _SMALLEST)
    weight = np.maximum(np.max([np.abs(rows).max(axis=0) for rows in weights], axis=0), _SMALLEST)
    ones = np.ones_like(activation)
    best, factors, least = None, ones, _WORTH_IT * _error(inputs, weights, ones)
    for alpha in ALPHAS:
        trial = activation**alpha / weight ** (1.0 - alpha)
        trial = (trial / np.exp(np.log(trial).mean())).astype(np.float32)  # a common factor changes nothing
        error = _error(inputs, weights, trial)
        if error < least:
            best, factors, least = alpha, trial, error
    return best, factors


def _error(
    inputs: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], factors: NDArray[np.float32]
) -> float:
    """Return Σ (X W − X̂ Ŵ)² with X̂ on one int8 grid and Ŵ in int8 per output channel, after scaling by `factors`."""
    scaled = inputs / factors
    low, high = min(float(scaled.min()), 0.0), max(float(scaled.max()), 0.0)
    step = np.float32(max(high - low, _SMALLEST) / 255.0)
    rounded = np.rint(scaled / step) * step
    total = 0.0
    for rows in weights:
        integers, scales = quantize_per_channel(rows * factors, 0)
        restored = dequantize_per_channel(integers, scales, 0)
        total += float(np.square(rounded @ restored.T - inputs @ rows.T, dtype=np.float64).sum())
    return total


def _fold(model: ir.Model, pair: _Pair, readers: Sequence[ir.Node], factors: NDArray[np.float32]) -> None:
    """Divide the norm's scale and bias by `factors` and multiply them into the weights that read it, in place."""
    norm = next(node for node in model.graph if node.name == pair.norm)
    for index in (1, 2):
        array = constant_of(norm.inputs[index]) if len(norm.inputs) > index else None
        if array is not None:
            # A constant of its own: another norm may read the old one.
            _replace(
                model, norm, index, (array / factors).astype(np.float32), f"{pair.norm}/smoothed_{index}"
            )
    for node in readers:
        matrix = constant_matrix(node)
        if matrix is not None:
            array = constant_of(matrix.source)
            if array is not None:
                scaled = array * factors if matrix.by_output else array * factors[:, None]
                matrix.source.const_value = ir.tensor(
                    np.ascontiguousarray(scaled, np.float32), name=matrix.source.name
                )


def _replace(model: ir.Model, node: ir.Node, index: int, array: NDArray[np.float32], name: str) -> None:
    while name in model.graph.initializers:
        name += "_"
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(array, name=name),
    )
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)

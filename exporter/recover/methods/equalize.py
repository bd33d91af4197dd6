"""Cross-layer equalisation: channels of one layer that are large and weak ones made alike, the next layer undoing it.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.1 (and Meller et al.
2019, "Same, Same But Different"): for f positively homogeneous, f(s·x) = s·f(x), channel j of the first layer is divided
by s_j = sqrt(r1_j / r2_j) and column j of the second multiplied by it. The paper equalises weight ranges, because its
weights share one scale per tensor. Here weights have a scale per output channel, and what suffers is the activation
between the two, which has one scale for all channels: r1_j is therefore the range of that activation's channel, seen on
calibration data. The float function stays what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.model.graph import constant_of, consumers, matches
from exporter.recover.methods.base import Candidate, Recovered, Workbench
from exporter.recover.methods.observe import observe

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})
"""Operators between two layers that a positive factor per channel passes through."""
MOST_SAMPLES = 32
MOST_ROUNDS = 8
_LARGEST_FACTOR = 1e3
_SETTLED = 0.05
"""The equalisation has converged when no factor moves by more than this."""
_DEAD = 1e-6
"""Channels below this share of the largest are dead: scaling them up would only scale up noise."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """Layers by node name: `first`, depthwise ones that follow, and `last`; `values` are what lies between."""

    first: str
    middle: tuple[str, ...]
    last: str
    values: tuple[str, ...]


def equalize(candidate: Candidate, bench: Workbench) -> Recovered:
    """Return `candidate` with the channels between pairs of layers made alike, and ranges chosen anew.

    Chains Conv or Gemm → (ReLU, LeakyReLU, pooling, depthwise Conv) → Conv or Gemm with one reader at every step are
    equalised; `details["skipped"]` says why others are not.
    """
    chains, skipped = _chains(candidate)
    if not chains:
        return Recovered(candidate, 0, {"pairs": 0, "skipped": skipped})
    samples = list(itertools.islice(iter(bench.samples), MOST_SAMPLES))
    names = list(dict.fromkeys(value for chain in chains for value in chain.values))
    peaks = _channel_peaks(candidate.model, names, samples)
    equalized = candidate.model.clone()
    nodes = {node.name: node for node in equalized.graph}
    largest = 0.0
    for number in range(MOST_ROUNDS):
        moved = max(_equalize(nodes, chain, peaks) for chain in chains)
        largest = max(largest, moved)
        bench.advance(number + 1, MOST_ROUNDS)
        if moved < _SETTLED:
            break
    if largest < _SETTLED:
        return Recovered(candidate, 0, {"pairs": len(chains), "skipped": skipped})
    encodings = candidate.encodings
    ranges = bench.encode(equalized, encodings.keep)
    settled = Candidate(equalized, replace(encodings, ranges=ranges or encodings.ranges))
    return Recovered(settled, len(chains), {"pairs": len(chains), "skipped": skipped})


def _chains(candidate: Candidate) -> tuple[list[_Chain], dict[str, str]]:
    found, skipped = [], {}
    for node in candidate.model.graph:
        if not _is_layer(node) or _is_depthwise(node) or matches(node.name or "", candidate.encodings.keep):
            continue
        chain, reason = _follow(node)
        if chain is None:
            skipped[node.name or ""] = reason
        else:
            found.append(chain)
    return found, skipped


def _follow(first: ir.Node) -> tuple[_Chain | None, str]:
    middle: list[str] = []
    values: list[str] = []
    node = first
    while True:
        output = node.outputs[0]
        readers = consumers(output)
        values.append(output.name or "")
        if output.is_graph_output() or len(readers) != 1:
            return None, "its result has several readers" if len(
                readers
            ) > 1 else "its result leaves the model"
        node = readers[0]
        if node.inputs[0] is not output:
            return None, f"{node.op_type} reads it as another operand"
        if _is_depthwise(node):
            middle.append(node.name or "")
        elif _is_layer(node):
            if _input_channels(node) != _output_channels(first):
                return None, "the next layer groups or flattens its channels"
            return _Chain(first.name or "", tuple(middle), node.name or "", tuple(values)), ""
        elif node.op_type not in HOMOGENEOUS:
            return None, f"{node.op_type} is not positively homogeneous"


def _is_layer(node: ir.Node) -> bool:
    if node.domain not in {"", "ai.onnx"} or node.op_type not in {"Conv", "Gemm"}:
        return False
    biases = node.inputs[2:3]
    constant = all(value is None or constant_of(value) is not None for value in biases)
    if node.op_type == "Gemm":
        scaled = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
        plain = scaled == (1.0, 1.0)
        constant = constant and plain and node.attributes.get_int("transA", 0) == 0
    weight = node.inputs[1]
    return constant and weight is not None and weight.producer() is None and constant_of(weight) is not None


def _is_depthwise(node: ir.Node) -> bool:
    if node.op_type != "Conv" or not _is_layer(node):
        return False
    group, shape = node.attributes.get_int("group", 1), _weight(node).shape
    return group > 1 and shape[1] == 1 and shape[0] == group


def _weight(node: ir.Node) -> NDArray[np.float32]:
    array = constant_of(node.inputs[1])
    if array is None:
        raise TypeError(f"{node.name} was taken for a layer with a constant weight")
    return array


def _output_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0 else 1


def _output_channels(node: ir.Node) -> int:
    return int(_weight(node).shape[_output_axis(node)])


def _input_channels(node: ir.Node) -> int:
    """Return how many channels a layer reads, 0 for a grouped convolution."""
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) != 1:
        return 0
    return int(_weight(node).shape[1 - _output_axis(node)])


def _channel_peaks(
    model: ir.Model, names: Sequence[str], samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, NDArray[np.float64]]:
    """Return the largest magnitude of each channel (axis 1) of the named values."""
    peaks: dict[str, NDArray[np.float64]] = {}
    for observed in observe(model, names, samples):
        for name, array in observed.items():
            others = tuple(axis for axis in range(array.ndim) if axis != 1)
            here = np.abs(array).max(axis=others).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, 0.0), here)
    return peaks


def _equalize(
    nodes: Mapping[str | None, ir.Node], chain: _Chain, peaks: dict[str, NDArray[np.float64]]
) -> float:
    """Scale the channels of one chain, in place, and their `peaks` with them; return the largest log factor."""
    last = nodes[chain.last]
    activation = np.max([peaks[value] / max(peaks[value].max(), 1e-30) for value in chain.values], axis=0)
    axis = 1 - _output_axis(last)
    weight = _weight(last)
    columns = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)).astype(np.float64)
    columns = columns / max(columns.max(), 1e-30)
    alive = (activation > _DEAD) & (columns > _DEAD)
    factors = np.where(alive, np.sqrt(np.maximum(activation, _DEAD) / np.maximum(columns, _DEAD)), 1.0)
    factors = np.clip(factors / np.exp(np.log(factors).mean()), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    _scale(nodes[chain.first], 1.0 / factors, _output_axis(nodes[chain.first]), bias=1.0 / factors)
    for name in chain.middle:
        # A depthwise filter hands its channel's factor on; only its bias has to follow.
        _scale(nodes[name], np.ones_like(factors), 0, bias=1.0 / factors)
    _scale(last, factors, axis, bias=None)
    for value in chain.values:
        peaks[value] = peaks[value] / factors
    return float(np.abs(np.log(factors)).max())


def _scale(node: ir.Node, factors: NDArray[np.float64], axis: int, bias: NDArray[np.float64] | None) -> None:
    shape = [1] * _weight(node).ndim
    shape[axis] = -1
    _store(node, 1, _weight(node) * factors.reshape(shape))
    given = constant_of(node.inputs[2]) if bias is not None and len(node.inputs) > 2 else None
    if given is not None and bias is not None:
        _store(node, 2, given * bias)


def _store(node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Give a layer a constant of its own: another may read the old one."""
    old = node.inputs[index]
    if old is None or node.graph is None:
        raise TypeError(f"{node.name} has no constant at {index}")
    stored = ir.tensor(np.ascontiguousarray(array, np.float32), name=old.name)
    if len(consumers(old)) == 1:
        old.const_value = stored
        return
    name = f"{node.name}/equalized_{index}"
    while name in node.graph.initializers:
        name += "_"
    value = ir.Value(
        name=name, shape=old.shape, type=old.type, const_value=ir.tensor(stored.numpy(), name=name)
    )
    node.graph.register_initializer(value)
    node.replace_input_with(index, value)

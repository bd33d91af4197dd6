"""The int4 weights of a converted file, rounded with the inputs that its layers see in calibration.

A layer's inputs say which rounding errors matter. A `.tflite` can be run to see them; for a package that cannot, the
ONNX graph's layer with the same rows stands in. Weights without such a layer (embedding tables, what a converter has
merged) are rounded by themselves. Runs in child processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.arrays import Float32Array
from exporter.formats.rounded_weights import ConverterWeight, on_grid, same_rows
from exporter.quantize.integers.rewrite import array_of, constant_matrix, is_matrix_product
from exporter.recover.methods.moments import Inputs, inputs_of, second_moments
from exporter.runtimes.worker import read_samples

MEMORY_BYTES = 512 << 20
"""What second moments may take at once; layers beyond it are done in further passes over the samples."""
MOST_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Rounded:
    """New rows by the name that the caller gave each weight, and which of them know the calibration data."""

    rows: Mapping[str, Float32Array]
    calibrated: frozenset[str]

    def note(self) -> str:
        """Return one line on how the int4 weights were rounded; "" if there are none."""
        if not self.rows:
            return ""
        if not self.calibrated:
            return f"{len(self.rows)} int4 weights have scales of least squared error, rounded without calibration data"
        said = f"{len(self.calibrated)} of {len(self.rows)} int4 weights are rounded with calibration data (GPTQ)"
        if len(self.calibrated) == len(self.rows):
            return said
        return f"{said}; the others (tables, and weights that the ONNX graph does not hold) by least squared error"


Moments = Callable[[Sequence[Inputs]], Mapping[Inputs, NDArray[Any]]]
"""Second moments Σ x xᵀ of what layers multiply their rows by, float32 `[groups, K, K]`."""


def round_for_converter(
    weights: Sequence[ConverterWeight],
    inputs: Mapping[str, Inputs],
    moments_of: Moments,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Rounded:
    """Return every weight on the grid of `rounded_weights`, chosen with the moments of its inputs where it has any.

    `inputs` are by weight name. `memory_bytes` bounds the moments that are asked for at once.
    """
    rows = {w.name: on_grid(w.rows, w.block) for w in weights if w.name not in inputs}
    by_input: dict[Inputs, list[ConverterWeight]] = {}
    for weight in weights:
        if weight.name in inputs:
            by_input.setdefault(inputs[weight.name], []).append(weight)
    for batch in _batches(by_input, memory_bytes):
        moments = moments_of(batch)
        for item in batch:
            for weight in by_input[item]:
                groups = zip(np.split(weight.rows, item.groups), moments[item], strict=True)
                rows[weight.name] = np.concatenate([on_grid(part, weight.block, h) for part, h in groups])
    return Rounded(rows, frozenset(inputs) & frozenset(rows))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the float graph: its weight as float32 rows `[N, K]`, and what they are multiplied by."""

    rows: Float32Array
    inputs: Inputs


def same_layers(weights: Sequence[ConverterWeight], model: ir.Model) -> dict[str, Layer]:
    """Return by weight name the layer of the float graph `model` that has the same rows, where there is one."""
    layers: dict[tuple[int, ...], list[Layer]] = {}
    for node in model.graph:
        item = inputs_of(node)
        if item is None:
            continue
        matrix = constant_matrix(node) if is_matrix_product(node) else None
        array = matrix.rows() if matrix is not None else array_of(node.inputs[1])
        rows = np.ascontiguousarray(array.reshape(len(array), -1))
        layers.setdefault(rows.shape, []).append(Layer(rows, item))
    found: dict[str, Layer] = {}
    for weight in weights:
        candidates = layers.get(weight.rows.shape, [])
        index = same_rows(weight.rows, [layer.rows for layer in candidates])
        if index is not None:
            found[weight.name] = candidates[index]
    return found


def onnx_moments(model: ir.Model, samples: Path) -> Moments:
    """Return the moments that layers of the float graph `model` see over `samples`.

    `samples` is a folder of `.npz` files with one array per graph input; at most `MOST_SAMPLES` of them are read.
    """

    def moments_of(wanted: Sequence[Inputs]) -> dict[Inputs, NDArray[Any]]:
        read = itertools.islice(read_samples(samples), MOST_SAMPLES)
        return dict(second_moments(model, wanted, read, sum(item.size_bytes for item in wanted)))

    return moments_of


def _batches(wanted: Iterable[Inputs], memory_bytes: int) -> Iterator[list[Inputs]]:
    batch: list[Inputs] = []
    for item in wanted:
        if batch and sum(other.size_bytes for other in batch) + item.size_bytes > memory_bytes:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch

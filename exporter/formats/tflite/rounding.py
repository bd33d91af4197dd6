"""The float `.tflite` whose int4 weights are chosen already, for litert-quantizer to store as they are.

Runs in a child process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from exporter.arrays import Float32Array
from exporter.formats.calibrated_rounding import MOST_SAMPLES, Rounded, round_for_converter
from exporter.formats.rounded_weights import ConverterWeight
from exporter.formats.tflite.calibrate import ObservedRun
from exporter.formats.tflite.graph import canonical_bytes, constant, read_model, shape_of, tensor_name
from exporter.formats.tflite.policy import Decision, Treatment
from exporter.recover.methods.moments import Inputs
from exporter.system import files


def round_four_bits(
    path: Path, decisions: Sequence[Decision], samples: Path | None, destination: Path
) -> Rounded:
    """Write the float `.tflite` at `path` to `destination` with its int4 weights on the converter's grid.

    `samples` are calibration samples by the names of the file's inputs, `None` to round without data. Returns the
    rows by the constant's index in the main graph. Raises what `tflite_calibrate.observe` raises for its samples.
    """
    model = read_model(path.read_bytes())
    readers = _readers(decisions)
    weights = [
        ConverterWeight(name, rows, decision.block_size or rows.shape[1])
        for name, decision in readers.items()
        for rows in [_rows(model, int(name), decision.operator.kind)]
    ]
    inputs = {} if samples is None else _inputs(model, readers)
    rounded = round_for_converter(weights, inputs, lambda wanted: _moments(path, samples or Path(), wanted))
    for name, rows in rounded.rows.items():
        values = _from_rows(rows, shape_of(model, int(name)), readers[name].operator.kind)
        buffer = model.buffers[model.subgraphs[0].tensors[int(name)].buffer]
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    files.write_bytes(destination, canonical_bytes(model))
    return rounded


def _moments(path: Path, samples: Path, wanted: Sequence[Inputs]) -> dict[Inputs, NDArray[Any]]:
    """Return Σ x xᵀ of each input, float32 `[groups, K, K]`, seen while the samples run through the file."""
    sums = {item: np.zeros((item.groups, item.columns, item.columns), np.float32) for item in wanted}
    run = ObservedRun(path, [item.value for item in wanted])
    for sample in run.paths(samples)[:MOST_SAMPLES]:
        for name, values in run.on(sample):
            for item in (item for item in wanted if item.value == name):
                rows = item.rows(values.transpose(0, 3, 1, 2) if item.kernel else values)
                sums[item] += rows.transpose(0, 2, 1) @ rows
    return sums


def _inputs(model: Any, readers: Mapping[str, Decision]) -> dict[str, Inputs]:
    """Return by weight what its rows multiply: the tensor's name, and of a CONV_2D the patches in ONNX's order."""
    found: dict[str, Inputs] = {}
    for name, decision in readers.items():
        operator = decision.operator
        value, shape = tensor_name(model, operator.inputs[0]), shape_of(model, operator.inputs[1])
        if operator.kind == "FULLY_CONNECTED":
            found[name] = Inputs(value, shape[-1])
        elif operator.kind == "CONV_2D":
            found[name] = _patches(value, shape_of(model, operator.inputs[0]), shape, operator.options)
    return found


def _patches(value: str, image: tuple[int, ...], weight: tuple[int, ...], options: Any) -> Inputs:
    """Return what a CONV_2D sees of `image` `[batch, height, width, inputs]`, its padding spelled out."""
    kernel = (weight[1], weight[2])
    strides = (int(options.strideH), int(options.strideW))
    dilations = (int(options.dilationHFactor), int(options.dilationWFactor))
    totals = (0, 0)
    if int(options.padding) == schema.Padding.SAME:
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        totals = (
            max(0, (-(-image[1] // strides[0]) - 1) * strides[0] + spans[0] - image[1]),
            max(0, (-(-image[2] // strides[1]) - 1) * strides[1] + spans[1] - image[2]),
        )
    before = tuple(total // 2 for total in totals)
    after = tuple(total - total // 2 for total in totals)
    groups = image[3] // weight[3]
    return Inputs(value, prod(weight[1:]), groups, kernel, strides, dilations, (*before, *after))


def _readers(decisions: Sequence[Decision]) -> dict[str, Decision]:
    """Return the constants that become int4, by index, once each, with the decision on their first reader."""
    found: dict[str, Decision] = {}
    for decision in decisions:
        if decision.treatment is Treatment.WEIGHT4:
            found.setdefault(str(decision.operator.inputs[1]), decision)
    return found


def _rows(model: Any, tensor: int, kind: str) -> Float32Array:
    """Return a weight as `[N, K]`; of a convolution `[N, height, width, inputs]` in ONNX's order of inputs first."""
    values = constant(model, tensor).astype(np.float32)
    if kind == "CONV_2D":
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values.reshape(len(values), -1))


def _from_rows(rows: Float32Array, shape: tuple[int, ...], kind: str) -> Float32Array:
    if kind != "CONV_2D" or prod(shape) == 0:
        return rows.reshape(shape)
    outputs, height, width, inputs = shape
    return np.ascontiguousarray(rows.reshape(outputs, inputs, height, width).transpose(0, 2, 3, 1))

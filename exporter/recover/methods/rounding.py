"""Rounding by reconstruction: integers that keep a layer's outputs, not its weights, from calibration data.

GPTQ (Frantar et al. 2022) for Conv, Gemm and MatMul; see `quantize.integers.gptq` for the method. The inputs are those
of the float graph: what earlier layers lost is bias correction's concern.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.model.graph import constant_of, consumers, matches
from exporter.quantize.integers.encodings import ChannelWeight, Encodings
from exporter.quantize.integers.gptq import round_blocks, round_channels
from exporter.quantize.integers.rewrite import constant_matrix
from exporter.quantize.integers.weights import Blocks, kernel_block, quantize_per_channel
from exporter.recover.methods.base import Candidate, Recovered, Workbench
from exporter.recover.methods.moments import Inputs, inputs_of, second_moments
from exporter.schemes import Scheme

MOST_SAMPLES = 128
"""Calibration samples that are run; GPTQ's own experiments use 128."""


@dataclass(slots=True)
class _Job:
    """One weight, the inputs of every operator that multiplies by it, and the sum of their moments."""

    source: ir.Value
    array: NDArray[np.float32]
    axis: int
    inputs: list[Inputs]
    bits: int
    seen: int = 0
    total: NDArray[np.float32] | None = field(default=None)


def round_weights(candidate: Candidate, bench: Workbench) -> Recovered:
    """Choose the integers of every quantised weight by what it does to its layer's outputs.

    Static and dynamic schemes and `weight_only_wi8` get int8 per channel (at the scales in the encodings, where there
    are some), int4 schemes get blocks. A weight with several readers answers to the inputs of all of them; an
    embedding table that is looked up as well is rounded plainly, because its rows are outputs themselves.
    """
    jobs, skipped = _jobs(candidate, bench.scheme)
    waiting: dict[Inputs, list[_Job]] = {}
    for job in jobs:
        for item in job.inputs:
            waiting.setdefault(item, []).append(job)
    channels, blocks = dict(candidate.encodings.channels), dict(candidate.encodings.blocks)
    done = 0
    samples = _Some(bench)
    for item, moments in second_moments(candidate.model, list(waiting), samples, bench.memory_bytes):
        for job in waiting[item]:
            job.seen += 1
            if len(job.inputs) > 1:
                job.total = moments.copy() if job.total is None else job.total + moments
            if job.seen < len(job.inputs):
                continue
            settled = _rounded(
                job, moments if job.total is None else job.total, candidate.encodings, bench.scheme
            )
            job.total = None
            name = job.source.name or ""
            if isinstance(settled, Blocks):
                blocks[name] = settled
            else:
                channels[name] = settled
            done += 1
            bench.advance(done, len(jobs))
    encodings = replace(candidate.encodings, channels=channels, blocks=blocks)
    return Recovered(
        Candidate(candidate.model, encodings), len(jobs), {"weights": len(jobs), "skipped": skipped}
    )


class _Some:
    """The first calibration samples, as often as they are asked for."""

    def __init__(self, bench: Workbench) -> None:
        self._samples = bench.samples

    def __iter__(self) -> Any:
        return itertools.islice(iter(self._samples), MOST_SAMPLES)


def _jobs(candidate: Candidate, scheme: Scheme) -> tuple[list[_Job], dict[str, str]]:
    jobs: dict[str, _Job] = {}
    skipped: dict[str, str] = {}
    for node in candidate.model.graph:
        name = node.name or ""
        held = _weight_of(node)
        if held is None or matches(name, candidate.encodings.keep):
            continue
        source, axis = held
        array = constant_of(source)
        inputs = inputs_of(node)
        bits = _bits(node, scheme, candidate.encodings)
        reason = _obstacle(source, array, inputs, bits)
        if reason or array is None or inputs is None:
            skipped[name] = reason
            continue
        key = source.name or ""
        if key not in jobs:
            jobs[key] = _Job(source, array, axis, [inputs], bits)
        elif jobs[key].axis == axis and _alike(jobs[key], inputs):
            jobs[key].inputs = list(dict.fromkeys([*jobs[key].inputs, inputs]))
        else:
            skipped[name] = "another operator reads its weight in another way, and was rounded for"
    return list(jobs.values()), skipped


def _alike(job: _Job, inputs: Inputs) -> bool:
    first = job.inputs[0]
    return (first.columns, first.groups) == (inputs.columns, inputs.groups)


def _weight_of(node: ir.Node) -> tuple[ir.Value, int] | None:
    if node.op_type == "Conv" and node.domain in {"", "ai.onnx"} and node.inputs[1] is not None:
        return node.inputs[1], 0
    if node.op_type in {"MatMul", "Gemm"} and (matrix := constant_matrix(node)) is not None:
        return matrix.source, 0 if matrix.by_output else 1
    return None


def _bits(node: ir.Node, scheme: Scheme, encodings: Encodings) -> int:
    given = encodings.bits.get(node.name or "")
    if given is not None:
        return given
    # Convolutions have no int4 kernel: they are stored as int8 unless four bits were asked for.
    return 8 if node.op_type == "Conv" else scheme.weight_bits


def _obstacle(source: ir.Value, array: NDArray[Any] | None, inputs: Inputs | None, bits: int) -> str:
    if array is None:
        return "its weight is computed at run time"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}"
    if inputs is None:
        return "its inputs cannot be told (transposed activation or automatic padding)"
    if any(reader.op_type == "Gather" for reader in consumers(source)):
        return "its weight is looked up as a table too"
    if bits not in {4, 8}:
        return f"{bits} bits are not rounded"
    return ""


def _rounded(
    job: _Job, moments: NDArray[np.float32], encodings: Encodings, scheme: Scheme
) -> ChannelWeight | Blocks:
    rows = np.moveaxis(job.array, job.axis, 0)
    matrix = np.ascontiguousarray(rows.reshape(len(rows), -1))
    if scheme.block_size is not None and (job.array.ndim == 2 or job.bits == 4):
        block = kernel_block(matrix.shape[1], scheme.block_size)
        parts = zip(np.split(matrix, len(moments)), moments, strict=True)
        return _joined([round_blocks(part, h, block, job.bits, symmetric=job.bits == 8) for part, h in parts])
    scales = _scales(job, encodings)
    integers = np.concatenate(
        [
            round_channels(part, moment, scale, job.bits)
            for part, moment, scale in zip(
                np.split(matrix, len(moments)), moments, np.split(scales, len(moments)), strict=True
            )
        ]
    )
    back = np.moveaxis(integers.reshape(rows.shape), 0, job.axis)
    return ChannelWeight(np.ascontiguousarray(back), scales, job.axis)


def _joined(parts: Sequence[Blocks]) -> Blocks:
    """Return the rows of `parts`, those of each group of a convolution, one after the other."""
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return Blocks(
        np.concatenate([part.packed for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zero_points) if zero_points else None,
        parts[0].bits,
        parts[0].columns,
    )


def _scales(job: _Job, encodings: Encodings) -> NDArray[np.float32]:
    held: Mapping[str, ChannelWeight] = encodings.channels
    chosen = held.get(job.source.name or "")
    if chosen is not None and chosen.axis == job.axis:
        return chosen.scales
    return quantize_per_channel(job.array, job.axis, job.bits)[1]

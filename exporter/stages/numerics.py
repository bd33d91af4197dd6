"""Quantised graph × scheme → whether a device will compute what this host computes, and what no device could.

Integer arithmetic is exact until a register overflows, and scales are harmless until they leave float32's normal
numbers. Both are settled by the stored weights alone, so both are answered here without running anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporter.artifacts import ArtifactSpec, GateResult
from exporter.model.graph import FLOAT_TYPES, constant_of
from exporter.quantize.integers.products import (
    INT16_MAX,
    INT32_MAX,
    Product,
    dequantized,
    integer_products,
    stored_integers,
)
from exporter.schemes import Method, Scheme

FLOAT16_MAX = 65504.0
SMALLEST_NORMAL = 2.0**-126
_PASSED_THROUGH = frozenset({"Cast", "Expand", "Identity", "Reshape"})
_WIDENED = "their products are added in 32 bits (pmaddwd), never in 16"
_NO_PAIRS = {
    "s8s8": f"signed activations: {_WIDENED}",
    "u8u8": f"two unsigned operands: {_WIDENED}",
    "depthwise": f"depthwise convolutions: {_WIDENED}",
    "blocks": "blocks of MatMulNBits: activations within ±127 and weights within ±128 make pairs of 32512 at most",
}


@dataclass(frozen=True, slots=True)
class PairSums:
    """Whether 16-bit sums of two products (x86 without VNNI: `vpmaddubsw`) can saturate.

    `largest` is the sum of largest magnitude over all layers that form pairs, `reasons` say of the others why not.
    """

    layers: int
    rows: int
    layers_at_risk: tuple[str, ...]
    rows_at_risk: int
    largest: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Accumulators:
    """Whether int32 accumulators can overflow: the largest sum, the layer it is in, and the bits left above it."""

    layers: int
    largest: int
    layer: str
    headroom_bits: float | None
    rows_over: int
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One number that does not do: where it is stored, who reads it, its value and what is wrong with it."""

    tensor: str
    layer: str
    index: tuple[int, ...]
    value: str
    problem: str


@dataclass(frozen=True, slots=True)
class DeviceAgreement:
    """What the stored integers of one graph allow: JSON-ready through `exporter.artifacts.to_plain`.

    `scales` and `biases` hold one finding a tensor (its worst number); `findings` are sentences for a report.
    """

    scheme: str
    products: tuple[Product, ...]
    pair_sums: PairSums
    accumulators: Accumulators
    scales: tuple[Finding, ...]
    biases: tuple[Finding, ...]
    findings: tuple[str, ...]


def examine(quantized: ir.Model, scheme: Scheme) -> DeviceAgreement:
    """Return what every device must agree on, and where x86 without VNNI may not, of a graph `quantize` made.

    Reads QDQ graphs, dynamic graphs (MatMulInteger) and weight-only graphs (MatMulNBits); runs nothing.
    """
    products = tuple(integer_products(quantized))
    pairs, sums = _pair_sums(products), _accumulators(products)
    scales, biases = tuple(_bad_scales(quantized)), tuple(_saturated_biases(quantized))
    return DeviceAgreement(
        str(scheme), products, pairs, sums, scales, biases, tuple(_sentences(scheme, pairs, sums))
    )


def numeric_gates(
    spec: ArtifactSpec, agreement: DeviceAgreement, overflow: Sequence[Finding] = ()
) -> list[GateResult]:
    """Return the gates on what no device can compute: scales, int32 biases, accumulators and float16's range.

    `overflow` is what `float16_overflow` found. Each gate allows none; its unit names the first offender.
    """
    sums = agreement.accumulators
    over = (
        f"rows whose sum leaves int32, at most {sums.largest} in {sums.layer}" if sums.rows_over else "rows"
    )
    gates = [
        _none_allowed(
            spec, "finite normal scales", len(agreement.scales), _named("scales", agreement.scales)
        ),
        _none_allowed(spec, "int32 biases", len(agreement.biases), _named("biases", agreement.biases)),
        _none_allowed(spec, "int32 accumulators", sums.rows_over, over),
    ]
    if spec.scheme.is_float and spec.scheme.weight_bits == 16:
        gates.append(_none_allowed(spec, "float16 range", len(overflow), _named("tensors", overflow)))
    return gates


def float16_overflow(model: ir.Model, ranges: Mapping[str, tuple[float, float]]) -> tuple[Finding, ...]:
    """Return the constants of a float graph, and the activations of `ranges` by name, beyond ±65504.

    One finding a tensor, a constant's largest magnitude; NaN counts as beyond.
    """
    found = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in FLOAT_TYPES or not tensor.size:
            continue
        array = np.asarray(tensor.numpy())
        magnitude = np.abs(array if array.dtype.kind == "f" else array.astype(np.float32))
        where = int(np.argmax(magnitude))  # NaN is the maximum of anything
        if not magnitude.reshape(-1)[where] <= FLOAT16_MAX:
            found.append(_finding(name, _first_reader(value), array, where, "is beyond float16's ±65504"))
    for name, (low, high) in ranges.items():
        beyond = [end for end in (low, high) if not abs(end) <= FLOAT16_MAX]
        if beyond:
            found.append(Finding(name, "activation", (), f"{beyond[0]:g}", "is beyond float16's ±65504"))
    return tuple(found)


# --- what a graph stores ---------------------------------------------------------------------------------


def _scales_in(node: ir.Node) -> Iterator[tuple[ir.Value, bool]]:
    """Yield the scales that `node` reads, and whether each must be positive (block formats sign theirs)."""
    index = {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMulNBits": 2, "GatherBlockQuantized": 2}.get(
        node.op_type
    )
    if index is not None and node.inputs[index] is not None:
        yield node.inputs[index], node.domain in {"", "ai.onnx"}  # type: ignore[misc]  # it is not None
    if node.op_type == "Mul":
        sources = [value.producer() for value in node.inputs if value is not None]
        if any(source is not None and source.op_type == "DynamicQuantizeLinear" for source in sources):
            yield from ((value, True) for value in node.inputs if value is not None)


def _bad_scales(model: ir.Model) -> Iterator[Finding]:
    seen = set[tuple[ir.Value, bool]]()
    for node in model.graph:
        for value, signed in _scales_in(node):
            source = _source(value)
            array = constant_of(source)
            if array is None or not array.size or (source, signed) in seen:
                continue
            seen.add((source, signed))
            yield from _first_bad(source.name or "", node.name or "", array, must_be_positive=signed)


def _source(value: ir.Value) -> ir.Value:
    """Return the constant that a scale comes from, through the casts and repeats that onnxruntime folds."""
    producer = value.producer()
    if producer is None or producer.op_type not in _PASSED_THROUGH or producer.inputs[0] is None:
        return value
    return _source(producer.inputs[0])


def _first_bad(name: str, layer: str, array: NDArray[Any], *, must_be_positive: bool) -> Iterator[Finding]:
    scales = array.astype(np.float32)
    magnitude = np.abs(scales)
    problems = [
        (~np.isfinite(scales), "is not finite"),
        (
            (scales <= 0) if must_be_positive else (scales == 0),
            "is not positive" if must_be_positive else "is zero",
        ),
        (magnitude < np.float32(SMALLEST_NORMAL), "is subnormal: some devices read it as zero"),
    ]
    for bad, problem in problems:
        if bad.any():
            yield _finding(name, layer, scales, int(np.argmax(bad)), problem)
            return


def _saturated_biases(model: ir.Model) -> Iterator[Finding]:
    for node in model.graph:
        bias = (
            dequantized(node.inputs[2]) if node.op_type in {"Conv", "Gemm"} and len(node.inputs) > 2 else None
        )
        stored = None if bias is None else stored_integers(bias.inputs[0])
        if bias is None or stored is None or stored.dtype != np.int32 or not stored.size:
            continue
        magnitude = np.abs(stored.astype(np.int64))
        where = int(np.argmax(magnitude))
        if magnitude.reshape(-1)[where] >= INT32_MAX:
            name = bias.inputs[0].name if bias.inputs[0] is not None else ""
            yield _finding(
                name or "", node.name or "", stored, where, "is at the end of int32: it was clipped"
            )


def _finding(name: str, layer: str, array: NDArray[Any], where: int, problem: str) -> Finding:
    index = tuple(int(i) for i in np.unravel_index(where, array.shape))
    return Finding(name, layer, index, f"{float(array.reshape(-1)[where]):g}", problem)


def _first_reader(value: ir.Value) -> str:
    return next((use.node.name or "" for use in value.uses()), "")


# --- what it comes to ------------------------------------------------------------------------------------


def _pair_sums(products: Sequence[Product]) -> PairSums:
    paired = [product for product in products if product.kernel == "u8s8"]
    other = dict.fromkeys(_NO_PAIRS[product.kernel] for product in products if product.kernel != "u8s8")
    return PairSums(
        layers=len(paired),
        rows=sum(product.rows for product in paired),
        layers_at_risk=tuple(product.layer for product in paired if product.pair_rows),
        rows_at_risk=sum(product.pair_rows for product in paired),
        largest=max((product.largest_pair or 0 for product in paired), default=0),
        reasons=tuple(other),
    )


def _accumulators(products: Sequence[Product]) -> Accumulators:
    known = [product for product in products if product.largest_sum is not None]
    worst = max(known, key=lambda product: product.largest_sum or 0, default=None)
    return Accumulators(
        layers=len(known),
        largest=0 if worst is None else worst.largest_sum or 0,
        layer="" if worst is None else worst.layer,
        headroom_bits=None if worst is None else worst.headroom_bits,
        rows_over=sum(product.rows_over for product in products),
        unknown=tuple(product.layer for product in products if product.largest_sum is None),
    )


def _sentences(scheme: Scheme, pairs: PairSums, sums: Accumulators) -> Iterator[str]:
    if pairs.rows_at_risk:
        yield (
            f"{scheme}: on x86 without VNNI, {pairs.rows_at_risk} of {pairs.rows} output channels in "
            f"{len(pairs.layers_at_risk)} of {pairs.layers} layers can saturate (16-bit sums of two products reach "
            f"{pairs.largest}, int16 ends at {INT16_MAX}): such a host may differ from the device and from hosts with VNNI; "
            f"{_remedy(scheme)}"
        )
    elif pairs.layers:
        yield f"{scheme}: no 16-bit sum of two products can saturate; the largest is {pairs.largest} of {INT16_MAX}"
    if sums.layers and sums.headroom_bits is not None and sums.headroom_bits < 1.0:
        yield f"{scheme}: sums in {sums.layer} reach {sums.largest}, int32 ends at {INT32_MAX}"


def _remedy(scheme: Scheme) -> str:
    if scheme.method is Method.STATIC:
        return "the signed scheme static_wi8_ai8 has no such sums"
    return "judge this file on a host with VNNI, or take static_wi8_ai8"


def _named(noun: str, findings: Sequence[Finding]) -> str:
    if not findings:
        return noun
    first = findings[0]
    where = f" at {first.index}" if first.index else ""
    return f"{noun}: {first.tensor}{where} of {first.layer} = {first.value} {first.problem}"


def _none_allowed(spec: ArtifactSpec, gate: str, count: int, unit: str) -> GateResult:
    return GateResult(spec, gate, 0.0, float(count), count == 0, unit)

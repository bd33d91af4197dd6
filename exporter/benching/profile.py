"""Where the time of one inference goes: by operator, by layer, int8 against float, and in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import onnx_ir as ir

from targets.devices.results import Node, Profile

_CONVERTING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"}
_MOVING = {
    *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Concat", "Split", "Slice"),
    *("Gather", "Expand", "Pad", "Shape", "ReorderInput", "ReorderOutput", "Resize", "Tile"),
}
_INTEGER_WEIGHTS = {"MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
_WEIGHTED = {
    "Conv",
    "FusedConv",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "ConvTranspose",
    "LSTM",
    "GRU",
}
_FUSED_IN = {"Relu", "Clip", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Add"}
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant)+$")
_NOTABLE_SHARE = 0.05


class Work(StrEnum):
    """What an operator does, as far as quantisation is concerned."""

    INTEGER = "int8"
    FLOAT = "float"
    CONVERTING = "conversion"
    MOVING = "layout"


def work_of(node: Node) -> Work:
    """Return what `node` does, by its type and the dtype of what flows into it."""
    if node.op in _CONVERTING:
        return Work.CONVERTING
    if node.op in _MOVING:
        return Work.MOVING
    if node.op in _INTEGER_WEIGHTS or "QLinear" in node.op or "Integer" in node.op or node.op == "QGemm":
        return Work.INTEGER
    return Work.FLOAT if node.inputs and node.inputs[0].startswith("float") else Work.INTEGER


def layer_names(path: Path) -> dict[str, str]:
    """Return the layer of every name that a runtime may call an operator of an `.onnx` file by.

    onnxruntime keeps the names of nodes, or takes that of the output: then of the last operator it fused in.
    """
    graph = ir.load(path).graph
    names: dict[str, str] = {}
    for node in graph:
        origin = node
        while origin.op_type in _FUSED_IN and (before := _first_producer(origin)) is not None:
            origin = before
        if node.name:
            names[node.name] = node.name
        layer = origin.name if origin.op_type in _WEIGHTED else node.name
        if layer and node.outputs[0].name:
            names[node.outputs[0].name] = layer
    return names


def _first_producer(node: ir.Node) -> ir.Node | None:
    producers = [None if value is None else value.producer() for value in node.inputs]
    return next((one for one in producers if one is not None), None)


def layer_of(node: Node, names: Mapping[str, str]) -> str:
    """Return the layer of the file that `node` came from, by `layer_names`; its own name if nothing is known of it."""
    plain = _SUFFIX.sub("", node.name)
    return names.get(plain, plain)


def read_profile(
    profile: Profile,
    names: Mapping[str, str],
    twin: tuple[Profile, Mapping[str, str]] | None,
    *,
    is_quantized: bool,
) -> dict[str, Any]:
    """Return the profile as the report holds it; `names` are the file's `layer_names`.

    `twin` is the profile of the same network in float, with its names, if there is one.

    Shares are of the sum over operators: a runtime that writes down every operator is slower than one that does not.
    """
    total = sum(node.us for node in profile.nodes)
    nodes = sorted(profile.nodes, key=lambda node: -node.us)
    layers = _by_layer(profile.nodes, names)
    float_layers = {} if twin is None else _by_layer(twin[0].nodes, twin[1])
    return {
        "file": profile.file,
        "runtime": profile.runtime,
        "threads": profile.threads,
        "why": profile.why,
        "total_us": total,
        "operators": _by_operator(profile.nodes, total),
        "layers": [
            {
                "layer": name,
                "us": us,
                "float_us": float_layers.get(name),
                "share": us / total if total else 0.0,
            }
            for name, us in sorted(layers.items(), key=lambda item: -item[1])
        ],
        "fell_back": [
            {"layer": layer_of(node, names), "op": node.op, "us": node.us}
            for node in nodes
            if is_quantized and node.op in _WEIGHTED and work_of(node) is Work.FLOAT
        ],
        "sentence": sentence(profile.nodes) if is_quantized else "",
    }


def _by_operator(nodes: Sequence[Node], total: float) -> list[dict[str, Any]]:
    groups: dict[tuple[str, Work], list[Node]] = {}
    for node in nodes:
        groups.setdefault((node.op, work_of(node)), []).append(node)
    rows = [
        {
            "op": op,
            "work": work.value,
            "nodes": len(members),
            "us": sum(node.us for node in members),
            "share": sum(node.us for node in members) / total if total else 0.0,
        }
        for (op, work), members in groups.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["us"])))


def _by_layer(nodes: Sequence[Node], names: Mapping[str, str]) -> dict[str, float]:
    """Return microseconds by layer, of operators with weights; the rest is in the table of operators."""
    times: dict[str, float] = {}
    for node in nodes:
        if node.op in _WEIGHTED or node.op in _INTEGER_WEIGHTS or work_of(node) is Work.INTEGER:
            name = layer_of(node, names)
            times[name] = times.get(name, 0.0) + node.us
    return times


def sentence(nodes: Sequence[Node]) -> str:
    """Return what a person needs to know about the time of a quantised file."""
    total = sum(node.us for node in nodes)
    if not total:
        return ""
    share: dict[Work, float] = dict.fromkeys(Work, 0.0)
    floats: dict[str, list[Node]] = {}
    for node in nodes:
        kind = work_of(node)
        share[kind] += node.us / total
        if kind is Work.FLOAT:
            floats.setdefault(node.op, []).append(node)
    parts = []
    for op, members in sorted(floats.items(), key=lambda item: -sum(node.us for node in item[1]))[:2]:
        part = sum(node.us for node in members) / total
        if part >= _NOTABLE_SHARE:
            parts.append(f"{100 * part:.0f} % in {len(members)} float {op} node{'s' * (len(members) != 1)}")
    if share[Work.CONVERTING] >= _NOTABLE_SHARE:
        count = sum(work_of(node) is Work.CONVERTING for node in nodes)
        parts.append(f"{100 * share[Work.CONVERTING]:.0f} % in {count} conversions between int8 and float")
    if share[Work.MOVING] >= _NOTABLE_SHARE:
        parts.append(f"{100 * share[Work.MOVING]:.0f} % moves data")
    told = f"{100 * share[Work.INTEGER]:.0f} % of the time is integer arithmetic"
    if not parts:
        return f"{told}: nothing else takes a notable part"
    weighted = [op for op in floats if op in _WEIGHTED]
    advice = (
        f"the float {weighted[0]} nodes have weights and could be int8: see what fell back"
        if weighted
        else "quantising more weights cannot speed up the rest"
    )
    return f"{told}, {', '.join(parts)}; {advice}"


def missing_profiles(profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each file that has no profile, with the reason."""
    return [f"{item['file']}: no profile: {item['why']}" for item in profiles if item["why"]]

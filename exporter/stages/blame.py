"""Where a statically quantised graph loses the signal: the layers to look at when a gate fails.

Both graphs are run on a few samples with every shared activation exposed. A layer is charged with what its
output lost beyond what its inputs had already lost, in decibels of SQNR; errors that merely pass through a
layer are not held against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.judging.metrics import compare_outputs
from exporter.runtimes.sessions import open_session

_CLEAN_DB = 60.0


@dataclass(frozen=True, slots=True)
class LayerLoss:
    """What one layer lost: SQNR of its output in decibels, and how much of the loss is its own."""

    layer: str
    sqnr_db: float
    lost_db: float


def worst_layers(
    float_onnx: Path, quantized_onnx: Path, samples: Sequence[Mapping[str, np.ndarray]], *, count: int = 3
) -> tuple[LayerLoss, ...]:
    """Return the `count` layers of a QDQ graph that lose most signal of their own, worst first."""
    plain, quantized = ir.load(float_onnx), ir.load(quantized_onnx)
    shared = _shared_values(plain, quantized)
    wanted = _activations(plain, [name for _, name, _ in shared], samples)
    answered = _activations(quantized, [restored for _, _, restored in shared], samples)
    sqnr = {
        name: compare_outputs(
            [{name: w[name]} for w in wanted], [{name: a[restored]} for a in answered]
        ).sqnr_db
        for _, name, restored in shared
    }
    losses = [
        LayerLoss(node.name or "", sqnr[name], _before(node, sqnr) - sqnr[name]) for node, name, _ in shared
    ]
    return tuple(sorted(losses, key=lambda loss: -loss.lost_db)[:count])


def _shared_values(plain: ir.Model, quantized: ir.Model) -> list[tuple[ir.Node, str, str]]:
    """Return (node, value in the float graph, the same value off the grid) for all that both graphs have."""
    present = {value.name for node in quantized.graph for value in node.outputs}
    ends = {value.name for value in quantized.graph.outputs}
    shared = []
    for node in plain.graph:
        for output in node.outputs:
            name = output.name or ""
            restored = name if name in ends else f"{name}/dq"
            if restored in present:
                shared.append((node, name, restored))
    return shared


def _before(node: ir.Node, sqnr: Mapping[str, float]) -> float:
    """Return the SQNR that reached `node`, found by walking up through operators that have no grid."""
    seen: set[ir.Value] = set()
    waiting = [value for value in node.inputs if value is not None]
    reached = [_CLEAN_DB]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if value.name is not None and value.name in sqnr:
            reached.append(sqnr[value.name])
        elif producer is not None:
            waiting.extend(item for item in producer.inputs if item is not None)
    return min(reached)


def _activations(
    model: ir.Model, names: Sequence[str], samples: Iterable[Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Return the named inner values of `model` for each sample."""
    import onnxruntime as ort

    exposed = model.clone()
    values = {value.name: value for node in exposed.graph for value in node.outputs}
    present = {value.name for value in exposed.graph.outputs}
    exposed.graph.outputs.extend(_typed(values[name]) for name in names if name not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = open_session(ir.to_proto(exposed).SerializeToString(), options)
    wanted = [value.name for value in session.get_inputs()]
    return [
        dict(zip(names, session.run(list(names), {key: sample[key] for key in wanted}), strict=True))
        for sample in samples
    ]


def _typed(value: ir.Value) -> ir.Value:
    # An output must state its type; inner values of a shipped graph do not.
    value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    return value

"""Run an ONNX graph as a torch module, so that gradients flow through what the exported file computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from exporter.torch_graph import arithmetic, neural, shaping
from exporter.torch_graph.operator import Operator, refusal

OPERATORS: Mapping[str, Operator] = {**arithmetic.OPERATORS, **shaping.OPERATORS, **neural.OPERATORS}
"""Every standard ONNX operator that can be run, by name."""
MODULE_DOMAIN = "torch"
"""Domain of nodes that a torch module computes: the attribute `module` is its key."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One node, ready to run. `freed` are values that nothing reads afterwards."""

    name: str
    compute: Operator | str
    attributes: Mapping[str, Any]
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    freed: tuple[str, ...]


class TorchGraph(nn.Module):
    """An ONNX graph of standard operators as a torch module; opsets 13 and later.

    Float constants are buffers (not in the state_dict), so that they move with the module; other constants
    stay on the CPU, where shapes are computed. `modules` compute the nodes of `MODULE_DOMAIN`, by key.
    Nothing here is in training mode: an exported graph has no dropout and fixed batch statistics.
    """

    def __init__(self, model: ir.Model, modules: Mapping[str, nn.Module] | None = None) -> None:
        """Raises `UnsupportedError` naming an operator that has no torch counterpart here."""
        super().__init__()
        self.parts = nn.ModuleDict(dict(modules or {}))
        self.input_names = tuple(value.name or "" for value in model.graph.inputs)
        self.output_names = tuple(value.name or "" for value in model.graph.outputs)
        self._buffer_names: dict[str, str] = {}
        self._fixed: dict[str, Tensor] = {}
        for name, value in model.graph.initializers.items():
            if value.const_value is not None:
                self._hold(name, torch.from_numpy(np.array(value.const_value.numpy())))
        self._steps = _steps(model, self.parts)

    def forward(self, *inputs: Tensor, constants: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return the graph's outputs for its inputs, both in the graph's order.

        `constants` stand in for the graph's own, by name: this is how parameters enter.
        """
        values: dict[str, Tensor] = dict(self._fixed)
        values.update((name, getattr(self, buffer)) for name, buffer in self._buffer_names.items())
        values.update(constants or {})
        values.update(zip(self.input_names, inputs, strict=True))
        for step in self._steps:
            given = [None if name is None else values[name] for name in step.inputs]
            if isinstance(step.compute, str):
                results = self.parts[step.compute](*given)
            else:
                results = step.compute(given, step.attributes)
            if isinstance(results, Tensor):
                values[step.outputs[0]] = results
            else:
                values.update(zip(step.outputs, results, strict=False))
            for name in step.freed:
                values.pop(name, None)
        return tuple(values[name] for name in self.output_names)

    def _hold(self, name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            self._buffer_names[name] = f"constant_{len(self._buffer_names)}"
            self.register_buffer(self._buffer_names[name], tensor, persistent=False)
        else:
            self._fixed[name] = tensor


def _steps(model: ir.Model, parts: nn.ModuleDict) -> tuple[_Step, ...]:
    kept = {value.name for value in model.graph.outputs}
    last_reader: dict[str, ir.Node] = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.name not in kept:
                last_reader[value.name or ""] = node
    freed: dict[ir.Node, list[str]] = {}
    for name, node in last_reader.items():
        freed.setdefault(node, []).append(name)
    return tuple(_step(node, tuple(freed.get(node, ())), parts) for node in model.graph)


def _step(node: ir.Node, freed: tuple[str, ...], parts: nn.ModuleDict) -> _Step:
    attributes = {name: _plain(node, attribute) for name, attribute in node.attributes.items()}
    compute: Operator | str
    if node.domain == MODULE_DOMAIN and attributes.get("module", "") in parts:
        compute = attributes["module"]
    elif node.domain in {"", "ai.onnx"} and node.op_type in OPERATORS:
        compute = OPERATORS[node.op_type]
    else:
        domain = f"{node.domain}:" if node.domain not in {"", "ai.onnx"} else ""
        raise refusal(f"operator {domain}{node.op_type} ({node.name}) has no torch counterpart")
    attributes[shaping.OUTPUTS] = len(node.outputs)
    return _Step(
        node.name or "",
        compute,
        attributes,
        tuple(None if value is None else value.name or "" for value in node.inputs),
        tuple(value.name or "" for value in node.outputs),
        freed,
    )


def _plain(node: ir.Node, attribute: ir.Attr) -> Any:
    """Return an attribute as a Python value, a tensor as a torch one."""
    if attribute.type == ir.AttributeType.TENSOR:
        return torch.from_numpy(np.array(attribute.as_tensor().numpy()))
    if attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        raise refusal(f"operator {node.op_type} ({node.name}) holds a graph of its own")
    value = attribute.value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value

"""The torch side of an `.mlpackage`: a program coremltools can take, and what its names and weights were.

Runs in a child process. Constants that do not depend on the inputs are computed here when coremltools meets an
operator it does not know (the mask code of transformers: `new_ones`, `diff`), since Core ML needs only their values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from exporter.arrays import Array

_aten = torch.ops.aten
# Results that depend on their operand's shape alone; the operand may be an input.
_SHAPE_ONLY: dict[Any, Callable[..., torch.Tensor]] = {
    _aten.new_ones.default: (lambda like, size: torch.ones(size, dtype=like.dtype)),
    _aten.new_zeros.default: (lambda like, size: torch.zeros(size, dtype=like.dtype)),
    _aten.ones_like.default: (lambda like: torch.ones(like.shape, dtype=like.dtype)),
    _aten.zeros_like.default: (lambda like: torch.zeros(like.shape, dtype=like.dtype)),
}
# Spellings that coremltools knows under another name; both operands are boolean wherever they are used.
_BOOLEAN_NAMES = {
    _aten.__and__.Tensor: _aten.logical_and.default,
    _aten.__or__.Tensor: _aten.logical_or.default,
    _aten.bitwise_and.Tensor: _aten.logical_and.default,
    _aten.bitwise_or.Tensor: _aten.logical_or.default,
}
_CONVOLUTIONS = {_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.convolution.default}
_BATCH_NORMS = {
    # Position of epsilon among the arguments; weight, bias, mean and variance are 1 to 4 in both.
    _aten._native_batch_norm_legit_no_training.default: 6,
    _aten.batch_norm.default: 7,
}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Torch module path of each name that coremltools derives its own names from."""

    paths: dict[str, str]

    def of(self, *names: str) -> tuple[str, ...]:
        """Return the distinct module paths behind Core ML names, longest known prefix first."""
        found: dict[str, None] = {}
        for name in names:
            steps = name.split("_")
            for count in range(len(steps), 0, -1):
                if path := self.paths.get("_".join(steps[:count])):
                    found[path] = None
                    break
        return tuple(found)


def load_program(program: Path) -> ExportedProgram:
    """Return the exported program in the operator set that coremltools converts."""
    exported: ExportedProgram = torch.export.load(program).run_decompositions({})
    return exported


def provenance(exported: ExportedProgram) -> Provenance:
    """Return the module path of every parameter and operator of the program."""
    signature = exported.graph_signature
    paths = {
        name: owner.rpartition(".")[0] or owner
        for name, owner in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
    }
    for node in exported.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if node.op == "call_function" and stack and stack[-1][0]:
            # "@1" marks a second call of the same module.
            paths[node.name] = stack[-1][0].partition("@")[0]
    return Provenance(paths)


def fold_constants(exported: ExportedProgram) -> ExportedProgram:
    """Return the program with everything computed that depends on no input and no parameter.

    Operators that use only the shape of a tensor (`new_ones(input_ids, …)`) count as independent of it.
    """
    module = exported.module(check_guards=False)
    _rename_operators(module)
    known: dict[torch.fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and _is_buffer(module, str(node.target)):
            known[node] = operator.attrgetter(str(node.target))(module)
        elif node.op == "call_function":
            _evaluate(node, known)
    _replace_with_buffers(module, known)
    args, kwargs = exported.example_inputs
    folded: ExportedProgram = torch.export.export(module, args, kwargs, strict=False).run_decompositions({})
    _remove_aliases(folded.graph_module)
    return folded


def _rename_operators(module: torch.fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.target is _aten._assert_tensor_metadata.default:
            # Checks of dtypes that torch.export inserts; they would keep folded chains alive.
            module.graph.erase_node(node)
        elif node.target in _BOOLEAN_NAMES and node.meta["val"].dtype == torch.bool:
            node.target = _BOOLEAN_NAMES[node.target]


def _remove_aliases(module: torch.fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.target is _aten.alias.default and all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()


def _is_buffer(module: torch.nn.Module, name: str) -> bool:
    # Parameters stay named tensors, so that they can be quantised, kept and compared.
    value = operator.attrgetter(name)(module)
    return isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)


def _evaluate(node: torch.fx.Node, known: dict[torch.fx.Node, Any]) -> None:
    target: Any = node.target
    if target in _SHAPE_ONLY:
        like = node.args[0].meta.get("val") if isinstance(node.args[0], torch.fx.Node) else None
        if isinstance(like, torch.Tensor) and not node.all_input_nodes[1:]:
            value = _SHAPE_ONLY[target](like, *node.args[1:2])
            known[node] = value.to(node.meta["val"].dtype)
        return
    schema = getattr(target, "_schema", None)
    is_pure = (
        schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    )
    if (is_pure or target is operator.getitem) and all(source in known for source in node.all_input_nodes):
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda source: known[source])
        with torch.no_grad():
            known[node] = target(*args, **kwargs)


def _replace_with_buffers(module: torch.fx.GraphModule, known: dict[torch.fx.Node, Any]) -> None:
    for node, value in known.items():
        is_read = any(user not in known for user in node.users)
        if node.op == "call_function" and isinstance(value, torch.Tensor) and is_read:
            name = f"folded_{node.name}"
            module.register_buffer(name, value.contiguous(), persistent=False)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta = {key: node.meta[key] for key in ("val", "nn_module_stack") if key in node.meta}
            node.replace_all_uses_with(constant)
    module.graph.eliminate_dead_code()
    module.recompile()


def weight_arrays(exported: ExportedProgram) -> dict[str, Array]:
    """Return every float parameter, buffer and constant by name, and what convolution + BatchNorm fold into.

    A folded pair appears as `conv.weight*bn` and `conv.bias*bn` (w·γ/√(σ²+ε) and (b-μ)·γ/√(σ²+ε)+β, float64).
    """
    arrays = {
        name: tensor.detach().numpy().astype(np.float64)
        for name, tensor in sorted({**exported.state_dict, **exported.constants}.items())
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    signature = exported.graph_signature
    owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in exported.graph.nodes:
        epsilon_at = _BATCH_NORMS.get(node.target)
        source = node.args[0] if epsilon_at is not None else None
        if epsilon_at is not None and isinstance(source, torch.fx.Node) and source.target in _CONVOLUTIONS:
            _fold_batch_norm(arrays, owners, source, node, float(node.args[epsilon_at]))
    return arrays


def _fold_batch_norm(
    arrays: dict[str, Array], owners: dict[str, str], conv: torch.fx.Node, norm: torch.fx.Node, epsilon: float
) -> None:
    def stored(argument: Any) -> Array | None:
        return arrays.get(owners.get(argument.name, "")) if isinstance(argument, torch.fx.Node) else None

    weight, bias = stored(conv.args[1]), stored(conv.args[2] if len(conv.args) > 2 else None)
    gamma, beta, mean, variance = (stored(argument) for argument in norm.args[1:5])
    if weight is None or mean is None or variance is None:
        return
    scale = (1.0 if gamma is None else gamma) / np.sqrt(variance + epsilon)
    name = owners[str(conv.args[1])]
    arrays[f"{name}*bn"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    shift = (0.0 if bias is None else bias) - mean
    arrays[f"{name.removesuffix('weight')}bias*bn"] = shift * scale + (0.0 if beta is None else beta)

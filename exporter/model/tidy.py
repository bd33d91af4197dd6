"""OnnxModel → OnnxModel: folded, deduplicated, shaped, named after the model's own modules, and free of leaks.

Requires a float graph that loads. Ensures: no BatchNormalization that a convolution can absorb, equal
constants stored once, every node named uniquely (`module.path/Operator`), axes named as in the recipe,
no doc string, no metadata, nothing of the machine that exported it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from exporter.artifacts import TensorSpec
from exporter.errors import InternalError
from exporter.model.graph import constant_of

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def tidy(model: ir.Model, inputs: Sequence[TensorSpec]) -> ir.Model:
    """Return a tidy copy of `model` whose axes are called what `inputs` calls them.

    Raises `InternalError` if a node ends up without a unique name.
    """
    tidied = model.clone()
    _rename_axes(tidied, inputs)
    rewriter.rewrite(
        tidied, [rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule]
    )
    optimizer.optimize_ir(tidied)
    _pool_globally(tidied)
    _make_contiguous(tidied)
    for step in (
        passes.LiftConstantsToInitializersPass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.DeduplicateHashedInitializersPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
    ):
        step(tidied)
    _name_nodes(tidied)
    passes.ShapeInferencePass()(tidied)
    _forget_origin(tidied)
    tidied.producer_name, tidied.producer_version = "edge-exporter", ""
    tidied.graph.name = "model"
    _require_unique_names(tidied)
    return tidied


def _make_contiguous(model: ir.Model) -> None:
    """Lay transposed constants out in memory as they will be in the file; hashing them needs that."""
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING:
            array = value.const_value.numpy()
            if not array.flags.c_contiguous:
                value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


def _pool_globally(model: ir.Model) -> None:
    """Call a mean over all spatial axes of an image what runtimes call it, and have kernels for."""
    for node in list(model.graph):
        if node.op_type == "ReduceMean" and _is_global_pool(node):
            pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
            pool.outputs[0].type = node.outputs[0].type
            replacement = [pool]
            if node.attributes.get_int("keepdims", 1) == 0:
                replacement.append(ir.node("Flatten", [pool.outputs[0]], {"axis": 1}))
            output = replacement[-1].outputs[0]
            output.type, output.shape = node.outputs[0].type, node.outputs[0].shape
            for new in replacement:
                new.metadata_props.update(node.metadata_props)
            model.graph.insert_before(node, replacement)
            ir.convenience.replace_all_uses_with(node.outputs[0], output)
            output.name = node.outputs[0].name
            model.graph.remove(node, safe=True)


def _is_global_pool(node: ir.Node) -> bool:
    data, output = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None or len(data.shape) != 4 or output.is_graph_output():
        return False
    given = node.attributes.get_ints("axes", None) if "axes" in node.attributes else None
    if given is None and len(node.inputs) > 1:
        array = constant_of(node.inputs[1])
        given = array.tolist() if array is not None else None
    return {axis % 4 for axis in given or ()} == {2, 3}


def _forget_origin(model: ir.Model) -> None:
    """Remove documentation and metadata everywhere: exporters write source paths and stack traces there."""
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()  # which that pass leaves alone
    model.doc_string = None
    constants = list(model.graph.initializers.values())
    for value in (*constants, *model.graph.outputs, *_all_values(model)):
        value.metadata_props.clear()
        value.doc_string = None


def _rename_axes(model: ir.Model, inputs: Sequence[TensorSpec]) -> None:
    """Give the exporter's symbols (`s40`) the recipe's names, also inside expressions (`2*s40`)."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, inputs, strict=False):
        for symbol, axis in zip(value.shape or (), spec.shape, strict=False):
            if isinstance(symbol, ir.SymbolicDim) and isinstance(axis, str) and symbol.value is not None:
                names[symbol.value] = axis
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _all_values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(axis, pattern, names) for axis in value.shape])


def _all_values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]


def _renamed(
    axis: int | ir.SymbolicDim, pattern: re.Pattern[str], names: Mapping[str, str]
) -> int | ir.SymbolicDim:
    if isinstance(axis, int) or axis.value is None:
        return axis
    return ir.SymbolicDim(pattern.sub(lambda match: names[match[0]], axis.value))


def _name_nodes(model: ir.Model) -> None:
    """Name nodes after the module they come from; a graph not exported by torch keeps its own names."""
    seen: dict[str, int] = {}
    for index, node in enumerate(model.graph):
        scope = _scope_of(node)
        base = f"{scope}/{node.op_type}" if scope is not None else node.name or f"{node.op_type}_{index}"
        seen[base] = seen.get(base, 0) + 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
    taken: set[str] = set()
    for node in model.graph:  # a name like "x_2" may have been given by its owner
        while node.name in taken:
            node.name = f"{node.name}_"
        taken.add(node.name or "")


def _scope_of(node: ir.Node) -> str | None:
    for value in node.inputs[1:]:
        if value is not None and value.const_value is not None and (value.name or "").endswith(".weight"):
            return (value.name or "").removesuffix(".weight")
    text = node.metadata_props.get(_SCOPES_KEY)
    if text is None:
        return None
    scopes = json.loads(text.replace("'", '"'))
    return scopes[-2] if len(scopes) > 1 and scopes[-2] else "model"


def _require_unique_names(model: ir.Model) -> None:
    names = [node.name for node in model.graph]
    if len(set(names)) != len(names) or None in names:
        raise InternalError("tidy left a node without a name of its own", fix="report this model as a bug")

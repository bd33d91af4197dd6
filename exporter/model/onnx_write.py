"""Write ONNX graphs: with axes fixed, without what runtimes infer, and past protobuf's limit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

PROTOBUF_LIMIT_BYTES = 2**31 - 2**24
"""Serialised models end at 2 GiB; weights move to a file beside the model a little before."""


def fix_axes(model: ir.Model, axes: Mapping[str, int]) -> ir.Model:
    """Return a copy of `model` whose named axes have the sizes in `axes`, with what follows folded."""
    fixed = model.clone()
    declared = [value.shape for value in fixed.graph.outputs]
    for value in fixed.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [axis if isinstance(axis, int) else axes[str(axis.value)] for axis in value.shape]
            )
    for node in fixed.graph:
        for output in node.outputs:
            output.shape = None
    passes.ShapeInferencePass()(fixed)
    optimizer.optimize_ir(fixed, onnx_shape_inference=True)
    passes.LiftConstantsToInitializersPass()(fixed)
    passes.DeduplicateHashedInitializersPass()(fixed)
    passes.RemoveUnusedNodesPass()(fixed)
    passes.ClearMetadataAndDocStringPass()(fixed)
    for value, shape in zip(fixed.graph.outputs, declared, strict=True):
        if value.shape is None and shape is not None:  # behind an operator that ONNX has no inference for
            value.shape = ir.Shape(
                [axis if isinstance(axis, int) else axes.get(str(axis.value), axis) for axis in shape]
            )
    return fixed


def forget_inner_shapes(model: ir.Model) -> ir.Model:
    """Drop what runtimes infer for themselves: the types and shapes of values inside the graph.

    Changes `model`, and returns it. In a quantised file of a small network they are a fifth of the bytes.
    """
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape, output.type = None, None
    return model


def shorten_constant_names(model: ir.Model) -> ir.Model:
    """Call constants, and what is computed from constants alone, by short numbers; nodes keep their names.

    Changes `model`, and returns it. Long module paths, repeated for every scale and weight, weigh more than
    all zero points of a ResNet-50 together.
    """
    derived: set[ir.Value] = {
        value for value in model.graph.initializers.values() if not value.is_graph_output()
    }
    for node in model.graph:
        if all(value is None or value in derived for value in node.inputs) and node.inputs:
            derived.update(output for output in node.outputs if not output.is_graph_output())
    taken = {value.name for value in [*model.graph.inputs, *(o for n in model.graph for o in n.outputs)]}
    taken -= {value.name for value in derived}
    numbers = (name for name in map(str, itertools.count()) if name not in taken)
    constants = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    order = [
        *(value for value in constants if value in derived),
        *(o for node in model.graph for o in node.outputs if o in derived),
    ]
    for value, name in zip(order, numbers, strict=False):
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
    for value in constants:
        model.graph.register_initializer(value)
    return model


def save_onnx(model: ir.Model, path: Path) -> list[Path]:
    """Write `model` to `path`, its weights beside it (`.onnx.data`) where protobuf's limit wants that.

    Returns every file written. The bytes depend on the model alone.
    """
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if total < PROTOBUF_LIMIT_BYTES:
        proto = ir.to_proto(model)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return [path]
    data = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=data.name)
    return [path, data]

"""Observing in several passes: which tensors fit into memory together, and a model that computes only those.

What an observed tensor is worth in bits depends on how onnxruntime fused the operators around it, and that depends on
what else is observed. So the model is optimised once, with everything observed, and every pass runs that very graph
with fewer outputs. (Leaving outputs out of `run` alone frees nothing: onnxruntime keeps them to the end.)

Knows onnx and onnxruntime, and imports them only when it runs. Must not know datasets or sketches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.arrays import Sample

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_SMALL_ELEMENTS = 1024
_WEIGHTS = "weights.bin"
_MODEL = "optimised.onnx"


def tensor_bytes(proto: onnx.ModelProto, sample: Sample) -> dict[str, int]:
    """Return the size of every tensor of `proto` whose shape follows from the shapes in `sample`."""
    import onnx

    light = _without_weights(proto)
    for value in light.graph.input:
        if value.name in sample:
            _fix_shape(value, np.shape(sample[value.name]))
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    sizes = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        kind = value.type.tensor_type
        axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
        if kind.elem_type and kind.HasField("shape") and None not in axes:
            elements = int(np.prod([axis for axis in axes if axis is not None], dtype=np.int64))
            sizes[value.name] = elements * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return sizes


def split(tensors: Sequence[str], sizes: Mapping[str, int], limit_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Return `tensors` in order, cut where the next would exceed `limit_bytes`; a larger one is alone.

    So is one of unknown size: it might be the largest.
    """
    groups: list[list[str]] = []
    filled = limit_bytes
    for name in tensors:
        size = sizes.get(name, limit_bytes)
        if not groups or filled + size > limit_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return tuple(tuple(group) for group in groups)


def optimise_into(options: onnxruntime.SessionOptions, folder: Path) -> None:
    """Have the session that is made with `options` write its optimised graph into `folder`, weights apart."""
    options.optimized_model_filepath = str(folder / _MODEL)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(_SMALL_ELEMENTS)
    )


def sessions_of(
    folder: Path, groups: Sequence[Sequence[str]], threads: int
) -> Iterator[onnxruntime.InferenceSession]:
    """Yield, one at a time, a session of the optimised graph in `folder` with the outputs of each group."""
    import onnx
    import onnxruntime

    proto = onnx.load(folder / _MODEL, load_external_data=False)
    outputs = {value.name: value for value in proto.graph.output}
    for group in groups:
        del proto.graph.output[:]
        proto.graph.output.extend(outputs[name] for name in group)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
        yield onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its large initializers as inputs: shape inference copies whatever it is given."""
    import onnx

    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = "shapes"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    named = {value.name for value in graph.input}
    for tensor in proto.graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if not external and np.prod(tensor.dims, dtype=np.int64) <= _SMALL_ELEMENTS:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def _fix_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    del value.type.tensor_type.shape.dim[:]
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size

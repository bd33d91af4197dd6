"""Small float graphs and the means to run what a quantiser makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, NDArray[Any]]
_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[type, Sequence[int | str]]],
    outputs: Sequence[str],
    constants: Arrays,
    opset: int = 18,
) -> ir.Model:
    """Return a checked model with inferred shapes; inputs are given as (dtype, shape)."""
    values = [
        helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape)
        for name, (dtype, shape) in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    body = helper.make_graph(nodes, "graph", values, results, initializers)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(model)


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node named after its output."""
    return helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes)


def weights(shape: Sequence[int], seed: int = 0) -> NDArray[np.float32]:
    """Return weights with heavier tails than a normal distribution, as trained ones have."""
    return (0.05 * np.random.default_rng(seed).standard_t(5, size=shape)).astype(np.float32)


def serialized(model: ir.Model) -> bytes:
    """Return the bytes of the file that `model` becomes."""
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def session(model: ir.Model, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a session at the default optimisation level, as a user would have it."""
    onnx.checker.check_model(ir.to_proto(model))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, feed: Arrays) -> NDArray[np.float32]:
    """Return the first output of `model` for `feed`."""
    output: NDArray[np.float32] = session(model).run(None, dict(feed))[0]
    return output


def executed(model: ir.Model, folder: Path) -> Counter[str]:
    """Return the operators that onnxruntime executes after its own optimisation."""
    path = folder / "optimized.onnx"
    session(model, path)
    return Counter(item.op_type for item in onnx.load(path).graph.node)


def sqnr_db(reference: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Return the signal to quantisation noise ratio in dB."""
    error = np.square(reference.astype(np.float64) - actual).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(error, 1e-30)))

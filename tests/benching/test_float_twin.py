"""The float twin of an int8 file: the same network, no quantisation, the decoded weights; or none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.benching.float_twin import write_float_twin

SCALES = np.array([0.01, 0.02, 0.005], np.float32)
CODES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4) * 20


def _save(path: Path, nodes: list[onnx.NodeProto], **constants: NDArray[np.generic]) -> Path:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [2, 4]), ("y", [2, 3]))
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _run(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    # As written: what is told here is what the operators say, not what a host makes of them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x})
    return np.asarray(answer)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("zero", [None, np.array([3, 0, -5], np.int8)])
def test_the_twin_computes_with_the_decoded_weights_and_rounds_nothing(
    tmp_path: Path, axis: int, zero: NDArray[np.int8] | None
) -> None:
    codes = CODES if axis == 0 else CODES.T
    more = {} if zero is None else {"wz": zero}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", *more], ["wd"], name="wdq", axis=axis),
        helper.make_node("Gemm", ["xd", "wd"], ["a"], name="layer", transB=int(axis == 0)),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["aq"], name="q2"),
        helper.make_node("DequantizeLinear", ["aq", "s", "z"], ["y"], name="dq2"),
    ]
    scalars = {"s": np.float32(0.3), "z": np.int8(2)}
    source = _save(tmp_path / "q.onnx", nodes, **scalars, w=codes, ws=SCALES, **more)
    twin = tmp_path / "f.onnx"
    assert write_float_twin(source, twin)
    assert [node.op_type for node in onnx.load(twin).graph.node] == ["Gemm"]
    offset = 0 if zero is None else zero.astype(np.float32)[:, None]
    weight = (CODES.astype(np.float32) - offset) * SCALES[:, None]
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(twin, x), x @ weight.T, rtol=1e-5, atol=1e-6)
    assert np.abs(_run(source, x) - x @ weight.T).max() > 1e-3


def test_what_is_not_coded_and_decoded_has_no_twin(tmp_path: Path) -> None:
    plain = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    source = _save(tmp_path / "f.onnx", plain, w=CODES.astype(np.float32))
    assert not write_float_twin(source, tmp_path / "t.onnx")
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["v", "s"], ["vd"]),
        helper.make_node("Mul", ["b", "vd"], ["y"]),
    ]
    source = _save(tmp_path / "d.onnx", dynamic, w=CODES.T.copy(), v=np.int8(3), s=np.float32(1))
    assert not write_float_twin(source, tmp_path / "t.onnx")
    assert not (tmp_path / "t.onnx").exists()

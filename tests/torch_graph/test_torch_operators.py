"""Every operator against `onnx.reference`, on random data, in the forms that exporters write."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.errors import UnsupportedError
from exporter.torch_graph.graph import OPERATORS, TorchGraph

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.1, 2, shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int64)


def flags(*shape: int) -> np.ndarray:
    return RNG.integers(0, 2, shape).astype(bool)


X = normal(2, 3, 4)
IMAGE = normal(2, 4, 7, 6)

ELEMENTWISE = (
    "Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Exp", "Sin", "Cos", "Tan", "Atan", "Erf", "Tanh",
    "Sigmoid", "Softplus", "Softsign", "Mish", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSwish",
    "HardSigmoid", "Softmax", "LogSoftmax", "Identity", "Dropout", "Shape", "Size", "IsNaN", "IsInf",
)  # fmt: skip

# operator, inputs (`None`: left out), attributes
FORMS: list[tuple[str, list[np.ndarray | None], dict[str, object]]] = [
    *((name, [X, normal(3, 1)], {}) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean")),
    ("Div", [whole(7, -7, 9), whole(2, 2, -4)], {}),
    ("Mod", [whole(7, -7, 9), whole(2, 3, -4)], {}),
    ("Mod", [X, positive(3, 4)], {"fmod": 1}),
    ("Pow", [positive(2, 3), np.asarray(3, np.int64)], {}),
    *(
        (name, [X], {})
        for name in ELEMENTWISE
    ),
    *((name, [positive(2, 3)], {}) for name in ("Sqrt", "Log", "Reciprocal")),
    ("LeakyRelu", [X], {"alpha": 0.2}),
    ("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.5}),
    ("PRelu", [X, positive(3, 1)], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Swish", [X], {"alpha": 1.5}),
    ("Softmax", [X], {"axis": 1}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [X, None, np.float32(0.25)], {}),
    ("MatMul", [normal(2, 3, 4), normal(4, 5)], {}),
    ("Gemm", [normal(3, 4), normal(4, 5), normal(5)], {}),
    ("Gemm", [normal(4, 3), normal(5, 4), normal(3, 5)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Einsum", [normal(2, 3, 4), normal(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    ("Where", [flags(3, 4), normal(2, 3, 4), normal(4)], {}),
    *((name, [whole(1, 2, 3), whole(3, 2, 1)], {}) for name in
      ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *((name, [flags(3, 4), flags(4)], {}) for name in ("And", "Or", "Xor")),
    ("Not", [flags(3)], {}),
    *((name, [positive(2, 3, 4), whole(1, -1)], {"keepdims": keep}) for keep in (0, 1) for name in
      ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
       "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")),
    ("ReduceMean", [X], {}),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    ("ArgMax", [X], {"axis": 1, "keepdims": 0}),
    ("ArgMin", [np.float32([[1, 0, 0], [2, 2, 3]])], {"axis": 1, "select_last_index": 1}),
    ("CumSum", [X, np.asarray(1, np.int64)], {"reverse": 1}),
    ("CumSum", [whole(1, 2, 3), np.asarray(0, np.int64)], {"exclusive": 1}),
    ("Shape", [X], {"start": 1, "end": 3}),
    ("Cast", [X], {"to": TensorProto.INT32}),
    ("Cast", [whole(0, 2)], {"to": TensorProto.BOOL}),
    ("CastLike", [X, whole(1)], {}),
    ("Reshape", [X, whole(0, -1)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": 0}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Squeeze", [normal(1, 3, 1), whole(0)], {}),
    ("Squeeze", [normal(1, 3, 1)], {}),
    ("Unsqueeze", [X, whole(0, -1)], {}),
    ("Concat", [X, normal(2, 1, 4)], {"axis": 1}),
    ("Slice", [X, whole(0, 1), whole(2, 1000), whole(0, 2), whole(1, 2)], {}),
    ("Slice", [X, whole(-1), whole(-1000), whole(2), whole(-2)], {}),
    ("Slice", [X, whole(1), whole(-1)], {}),
    ("Slice", [X, whole(2), whole(1), whole(1)], {}),
    ("Gather", [normal(9, 4), whole(3, -1, 0).reshape(3, 1)], {}),
    ("Gather", [X, np.asarray(-1, np.int64)], {"axis": 1}),
    ("Gather", [whole(5, 6, 7), whole(2, 0)], {}),
    ("GatherElements", [X, RNG.integers(-3, 3, (2, 2, 4))], {"axis": 1}),
    ("GatherND", [X, np.asarray([[0, 1], [1, -1]], np.int64)], {}),
    ("ScatterND", [X, np.asarray([[0], [1]], np.int64), normal(2, 3, 4)], {}),
    ("ScatterElements", [X, np.asarray([[[0, 2, 1, 1]], [[1, 0, 0, -1]]]), normal(2, 1, 4)], {"axis": 1}),
    ("Expand", [normal(3, 1), whole(2, 1, 4)], {}),
    ("Tile", [X, whole(1, 2, 3)], {}),
    ("Range", [np.asarray(2, np.int64), np.asarray(9, np.int64), np.asarray(3, np.int64)], {}),
    ("ConstantOfShape", [whole(2, 3)], {"value": numpy_helper.from_array(whole(7))}),
    ("ConstantOfShape", [whole(2, 3)], {}),
    ("Pad", [X, whole(0, 1, 0, 0, 2, 1), np.float32(0.5)], {}),
    ("Pad", [IMAGE, whole(0, 0, 2, 1, 0, 0, 1, 2)], {"mode": "reflect"}),
    ("Pad", [IMAGE, whole(0, 0, 2, 1, 0, 0, 1, 2)], {"mode": "edge"}),
    ("Pad", [X, whole(1, 2), np.float32(0), whole(1)], {}),
    ("Trilu", [normal(4, 4)], {}),
    ("Trilu", [normal(2, 4, 4), np.asarray(-1, np.int64)], {"upper": 0}),
    ("DepthToSpace", [normal(1, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", [normal(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [normal(1, 2, 4, 6)], {"blocksize": 2}),
    ("Conv", [IMAGE, normal(6, 4, 3, 3), normal(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [IMAGE, normal(4, 1, 3, 3)], {"pads": [0, 1, 2, 1], "group": 4, "dilations": [1, 2]}),
    ("Conv", [IMAGE, normal(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [normal(2, 3, 9), normal(5, 3, 3), normal(5)], {"pads": [1, 1]}),
    ("ConvTranspose", [IMAGE, normal(4, 3, 3, 3), normal(3)],
     {"pads": [1, 0, 1, 0], "strides": [2, 2], "output_padding": [1, 0]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [IMAGE], {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}),
    ("GlobalAveragePool", [IMAGE], {}),
    ("GlobalMaxPool", [IMAGE], {}),
    ("LayerNormalization", [X, positive(4), normal(4)], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, positive(3, 4)], {"axis": 1}),
    ("RMSNormalization", [X, positive(4)], {}),
    ("BatchNormalization", [IMAGE, positive(4), normal(4), normal(4), positive(4)], {"epsilon": 1e-3}),
    ("InstanceNormalization", [IMAGE, positive(4), normal(4)], {}),
    ("GroupNormalization", [IMAGE, positive(4), normal(4)], {"num_groups": 2}),
    ("Resize", [IMAGE, None, np.float32([1, 1, 2, 2])],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", [IMAGE, None, None, whole(2, 4, 10, 9)], {"mode": "linear"}),
    ("Resize", [IMAGE, None, None, whole(2, 4, 10, 9)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
]  # fmt: skip

SEVERAL_OUTPUTS: list[tuple[str, list[np.ndarray | None], dict[str, object], int]] = [
    ("Split", [X, whole(1, 3)], {"axis": 2}, 2),
    ("Split", [normal(5, 2)], {"num_outputs": 2}, 2),
    ("TopK", [X, whole(2)], {"axis": 2}, 2),
]


def model_of(
    op: str, inputs: list[np.ndarray | None], attributes: dict[str, object], outputs: int
) -> onnx.ModelProto:
    names = ["" if array is None else f"in{index}" for index, array in enumerate(inputs)]
    results = [f"out{index}" for index in range(outputs)]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    node = helper.make_node(op, names, results, name="node", **attributes)
    graph = helper.make_graph([node], "g", given, [onnx.ValueInfoProto(name=name) for name in results])
    opset = {"Gelu": 20, "GroupNormalization": 21, "RMSNormalization": 23, "Swish": 24}.get(op, 18)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def judge(op: str, inputs: list[np.ndarray | None], attributes: dict[str, object], outputs: int = 1) -> None:
    proto = model_of(op, inputs, attributes, outputs)
    feeds = {f"in{index}": np.asarray(array) for index, array in enumerate(inputs) if array is not None}
    want = ReferenceEvaluator(proto).run(None, feeds)
    graph = TorchGraph(ir.from_proto(proto))
    have = graph(*(torch.from_numpy(feeds[name]) for name in graph.input_names))
    assert len(have) == outputs
    for expected, tensor in zip(want, have, strict=True):
        assert tensor.numpy().dtype == np.asarray(expected).dtype
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=2e-5, atol=2e-5)
        assert tensor.shape == np.shape(expected)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), FORMS, ids=[f"{n}-{f[0]}" for n, f in enumerate(FORMS)]
)
def test_an_operator_means_what_the_reference_says(op, inputs, attributes):
    judge(op, inputs, attributes)


@pytest.mark.parametrize(("op", "inputs", "attributes", "outputs"), SEVERAL_OUTPUTS)
def test_an_operator_of_several_outputs_too(op, inputs, attributes, outputs):
    judge(op, inputs, attributes, outputs)


def test_every_operator_of_the_table_was_judged():
    assert set(OPERATORS) == {form[0] for form in (*FORMS, *SEVERAL_OUTPUTS)}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "said"),
    [
        ("LSTM", [normal(1, 2, 3), normal(1, 8, 3), normal(1, 8, 2)], {"hidden_size": 2}, "LSTM"),
        ("Resize", [IMAGE, None, np.float32([1, 1, 2, 2])], {"mode": "nearest"}, "half_pixel"),
        ("Pad", [X, whole(0, 1, 0, 0, 2, 1)], {"mode": "weird"}, "weird"),
        ("Cast", [X], {"to": TensorProto.STRING}, "element type"),
    ],
)
def test_what_has_no_torch_counterpart_is_named(op, inputs, attributes, said):
    graph = model_of(op, inputs, attributes, 1)
    feeds = [torch.from_numpy(np.asarray(array)) for array in inputs if array is not None]
    with pytest.raises(UnsupportedError, match=said) as refused:
        TorchGraph(ir.from_proto(graph))(*feeds)
    assert refused.value.exit_code == 12

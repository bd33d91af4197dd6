"""Where the time goes: operators sorted by what quantisation can speed up, names back to layers, one sentence."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporter.benching.profile import Work, layer_names, layer_of, read_profile, sentence, work_of
from targets.devices.results import Node, Profile


def _node(op: str, us: float = 1.0, inputs: tuple[str, ...] = ("float",), name: str = "n") -> Node:
    return Node(name=name, op=op, inputs=inputs, us=us)


@pytest.mark.parametrize(
    ("op", "inputs", "work"),
    [
        ("QLinearConv", ("uint8", "float"), Work.INTEGER),
        ("QGemm", ("int8",), Work.INTEGER),
        ("MatMulInteger", ("int8",), Work.INTEGER),
        ("MatMulNBits", ("float",), Work.INTEGER),
        ("MaxPool", ("int8",), Work.INTEGER),
        ("MaxPool", ("float",), Work.FLOAT),
        ("Conv", ("float",), Work.FLOAT),
        ("Softmax", ("float16",), Work.FLOAT),
        ("QuantizeLinear", ("float",), Work.CONVERTING),
        ("DequantizeLinear", ("int8",), Work.CONVERTING),
        ("Transpose", ("float",), Work.MOVING),
    ],
)
def test_an_operator_is_sorted_by_its_type_and_what_flows_in(
    op: str, inputs: tuple[str, ...], work: Work
) -> None:
    assert work_of(_node(op, inputs=inputs)) is work


def test_the_sentence_names_shares_counts_and_what_they_mean() -> None:
    nodes = [_node("QLinearConv", 38.0, ("int8",)), *[_node("Softmax", 15.5)] * 4]
    told = sentence(nodes)
    assert told == (
        "38 % of the time is integer arithmetic, 62 % in 4 float Softmax nodes; "
        "quantising more weights cannot speed up the rest"
    )
    fell = sentence(
        [_node("QLinearConv", 50.0, ("int8",)), _node("Conv", 30.0), _node("DequantizeLinear", 20.0)]
    )
    assert "30 % in 1 float Conv node, 20 % in 1 conversions" in fell
    assert "the float Conv nodes have weights and could be int8" in fell
    assert sentence([_node("QGemm", 1.0, ("int8",))]).endswith("nothing else takes a notable part")
    assert sentence([]) == ""


@given(
    nodes=st.lists(
        st.builds(
            Node,
            name=st.text(max_size=8),
            op=st.sampled_from(["Conv", "QLinearConv", "Softmax", "QuantizeLinear", "Transpose", "Strange"]),
            inputs=st.lists(st.sampled_from(["float", "int8", "int64"]), max_size=2).map(tuple),
            us=st.floats(0, 1e9),
        ),
        max_size=12,
    )
)
def test_every_microsecond_is_in_exactly_one_operator(nodes: list[Node]) -> None:
    profile = Profile(file="f", runtime="r", threads=1, nodes=tuple(nodes), why=None)
    told = read_profile(profile, {}, None, is_quantized=True)
    assert sum(row["us"] for row in told["operators"]) == pytest.approx(sum(node.us for node in nodes))
    assert sum(row["nodes"] for row in told["operators"]) == len(nodes)


def test_names_that_a_runtime_made_lead_back_to_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="stem/Conv"),
        helper.make_node("Relu", ["a"], ["b"], name="stem/Relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["y"], name="pool"),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])), tmp_path / "m.onnx"
    )
    names = layer_names(tmp_path / "m.onnx")
    layers = {
        name: layer_of(_node("Conv", name=name), names)
        for name in ("stem/Conv_token_12", "a_nchwc", "b_nchwc", "stem/Conv", "y", "Transpose_7")
    }
    assert layers == {
        **dict.fromkeys(("stem/Conv_token_12", "a_nchwc", "b_nchwc", "stem/Conv"), "stem/Conv"),
        "y": "pool",
        "Transpose_7": "Transpose_7",
    }


def test_layers_stand_beside_their_float_twins_and_fallbacks_are_named() -> None:
    own = Profile(
        file="f",
        runtime="onnxruntime",
        threads=1,
        nodes=(_node("QLinearConv", 4.0, ("int8",), "a_token_1"), _node("Conv", 6.0, name="b")),
        why=None,
    )
    twin = own.model_copy(
        update={"nodes": (_node("Conv", 8.0, name="a_nchwc"), _node("Conv", 5.0, name="b"))}
    )
    told = read_profile(own, {"a": "a", "b": "b"}, (twin, {"a": "a", "b": "b"}), is_quantized=True)
    assert [(row["layer"], row["us"], row["float_us"]) for row in told["layers"]] == [
        ("b", 6.0, 5.0),
        ("a", 4.0, 8.0),
    ]
    assert told["fell_back"] == [{"layer": "b", "op": "Conv", "us": 6.0}]

"""Sessions compute integer products exactly, on x86 without VNNI too."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.errors import InputError
from exporter.runtimes import sessions
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.runtimes.optimized import executed_operators

FACTS = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2{}\n"


@pytest.mark.parametrize(
    ("flags", "machine", "saturates"),
    [
        ("", "x86_64", True),
        (" avx512f avx512bw", "x86_64", True),
        (" avx512f avx512_vnni", "x86_64", False),
        (" avx_vnni", "x86_64", False),
        ("", "aarch64", False),
    ],
)
def test_a_host_is_known_by_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, machine: str, saturates: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(FACTS.format(flags))
    monkeypatch.setattr(sessions.platform, "machine", lambda: machine)
    assert sessions.pair_sums_saturate(tmp_path / "cpuinfo") is saturates
    assert sessions.pair_sums_saturate(tmp_path / "absent") is False


def chain(layers: int) -> bytes:
    """Return matrix products of full-range int8 weights, one after another, that share the zero point of their weights."""
    rng = np.random.default_rng(1)
    nodes, constants = [], {"s": np.float32(1.0), "z": np.int8(0), "ws": np.float32(1 / 127)}
    value = "x"
    for number in range(layers):
        constants[f"w{number}"] = rng.choice(np.array([-127, 127], np.int8), (64, 64))
        nodes += [
            helper.make_node("QuantizeLinear", [value, "s", "z"], [f"q{number}"]),
            helper.make_node("DequantizeLinear", [f"q{number}", "s", "z"], [f"d{number}"]),
            helper.make_node("DequantizeLinear", [f"w{number}", "ws", "z"], [f"e{number}"]),
            helper.make_node("MatMul", [f"d{number}", f"e{number}"], [f"y{number}"]),
        ]
        value = f"y{number}"
    nodes += [
        helper.make_node("QuantizeLinear", [value, "s", "z"], ["last"]),
        helper.make_node("DequantizeLinear", ["last", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 64]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(item), name) for name, item in constants.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    ).SerializeToString()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sums_of_large_products_are_those_of_the_specification(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a host whose sums saturate, wherever this runs.
    monkeypatch.setattr(sessions, "pair_sums_saturate", lambda: True)
    model = chain(layers)
    x = np.random.default_rng(2).integers(-127, 128, (4, 64)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    (answer,) = sessions.open_session(model, options).run(None, {"x": x})
    wanted = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, {"x": x})[0]
    np.testing.assert_allclose(answer, wanted, atol=1)  # a tie may round either way


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"x": np.zeros((4, 64), np.float64)},
        {"x": np.zeros((4, 63), np.float32)},
        {"x": np.zeros(64, np.float32)},
        {"x": np.full((4, 64), None)},
        {"x": np.full((4, 64), "a")},
        {"x": np.zeros((4, 64), np.complex64)},
        {"x": None},
        {"x": {"y": 1}},
    ],
    ids=str,
)
def test_what_a_model_does_not_take_is_an_input_error(tmp_path: Path, feeds: dict[str, Any]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(chain(1))
    model = OnnxModel(path)
    with pytest.raises(InputError, match=r"^onnxruntime refused to run the model: \S"):
        model.run(feeds)


def unheard_of() -> bytes:
    """Return a model of one operator that nobody knows."""
    graph = helper.make_graph([helper.make_node("Nothing", [], ["y"])], "graph", [], [])
    return helper.make_model(graph, ir_version=9).SerializeToString()


@pytest.mark.parametrize("content", [b"", b"no model", chain(1)[:-100], unheard_of(), None])
def test_what_is_no_model_is_an_input_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    for load in (OnnxModel, executed_operators):
        with pytest.raises(InputError, match=r"^onnxruntime \S+ cannot load .*model\.onnx: \S"):
            load(path)


def test_what_is_no_refusal_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(chain(1))
    model = OnnxModel(path)
    for other in (MemoryError(), KeyError("a bug of ours")):
        monkeypatch.setattr(model, "_session", Mock(run=Mock(side_effect=other)))
        with pytest.raises(type(other)):
            model.run({})

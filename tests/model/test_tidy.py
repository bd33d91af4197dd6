"""Tidy graphs: folded, named after the model's modules, silent about who made them, and equal in what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from stage_ground import conv_source

from exporter.artifacts import TensorSpec
from exporter.model.onnx_write import save_onnx
from exporter.model.source import SourceModel
from exporter.model.tidy import tidy
from exporter.model.to_onnx import to_onnx
from exporter.runtimes.onnxruntime_cpu import OnnxModel


@pytest.fixture(scope="module")
def source() -> SourceModel:
    """Return a small network with normalisation."""
    return conv_source()


@pytest.fixture(scope="module")
def raw(source: SourceModel) -> ir.Model:
    """Return its graph as torch exports it."""
    return to_onnx(source)


def test_normalisation_is_folded_and_the_mean_is_a_pool(raw: ir.Model, source: SourceModel) -> None:
    operators = [node.op_type for node in tidy(raw, source.inputs).graph]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 1
    assert "GlobalAveragePool" in operators


def test_nodes_are_named_after_modules(raw: ir.Model, source: SourceModel) -> None:
    names = [node.name for node in tidy(raw, source.inputs).graph]
    assert "conv/Conv" in names
    assert "head/Gemm" in names
    assert len(set(names)) == len(names)


def test_axes_are_called_what_the_recipe_calls_them(raw: ir.Model, source: SourceModel) -> None:
    model = tidy(raw, source.inputs)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert str(value.shape[0]) == "batch"  # type: ignore[index]


def test_nothing_of_the_machine_is_left(raw: ir.Model, source: SourceModel, tmp_path: Path) -> None:
    save_onnx(tidy(raw, source.inputs), tmp_path / "net.onnx")
    content = (tmp_path / "net.onnx").read_bytes()
    for leak in (b"/home", b"/work", b"site-packages", b".py"):
        assert leak not in content
    proto = onnx.load(tmp_path / "net.onnx")
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.initializer,
        *graph.value_info,
    ):
        assert part.doc_string == ""
        assert not part.metadata_props
    assert b"torch" not in content


def test_the_graph_given_is_not_changed_and_the_result_computes_the_same(
    raw: ir.Model, source: SourceModel, tmp_path: Path
) -> None:
    before = ir.to_proto(raw).SerializeToString(deterministic=True)
    save_onnx(raw, tmp_path / "raw.onnx")
    save_onnx(tidy(raw, source.inputs), tmp_path / "tidy.onnx")
    assert ir.to_proto(raw).SerializeToString(deterministic=True) == before
    image = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    want, have = (
        OnnxModel(tmp_path / name).run({"image": image})["output"] for name in ("raw.onnx", "tidy.onnx")
    )
    assert np.allclose(want, have, atol=1e-5)


def test_tidying_twice_changes_nothing(raw: ir.Model, source: SourceModel) -> None:
    once = tidy(raw, source.inputs)
    twice = tidy(once, source.inputs)
    assert ir.to_proto(once).SerializeToString(deterministic=True) == ir.to_proto(twice).SerializeToString(
        deterministic=True
    )


def test_equal_constants_are_stored_once_and_names_are_made_unique() -> None:
    table = np.arange(64, dtype=np.float32).reshape(8, 8)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["y"], name="same"),
            helper.make_node("MatMul", ["y", "second"], ["z"], name="same"),
            helper.make_node("Identity", ["z"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(table, "first"), numpy_helper.from_array(table, "second")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = tidy(ir.from_proto(proto), [TensorSpec("x", "float32", ("batch", 8))])
    assert len(model.graph.initializers) == 1
    assert len({node.name for node in model.graph}) == len(list(model.graph)) == 2
    assert [value.name for value in model.graph.outputs] == ["out"]

"""build, quantize and calibrate open a model through the same lines: the same graph, the same ranges, the same findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import ArtifactSpec
from exporter.bundle.report import Report
from exporter.jobs.build import build
from exporter.jobs.calibrate import Calibrating, calibrate_file
from exporter.jobs.calibrate import plan_of as calibration_plan
from exporter.jobs.quantize import Quantizing, quantize_file
from exporter.jobs.quantize import plan_of as quantize_plan
from exporter.progress import Silence
from exporter.recipe.planning import Plan, make_plan
from exporter.recipe.recipe import read_recipe
from targets.discovery import get_target

RECIPE = """
[model]
name = "net"
version = "1.0.0"
path = "net.onnx"
axes = { batch = 1 }
[data]
calibration = { source = "npz", path = "data.npz", labels = "label" }
evaluation = { source = "npz", path = "data.npz", labels = "label" }
[gates]
min_sqnr_db = 0
[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small convolutional network, data for it, and a recipe."""
    generator = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.normal(0, 0.5, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "c.weight"], ["h"], name="c", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "head.weight"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [constant("c.weight", 8, 3, 3, 3), constant("head.weight", 4, 8)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "net.onnx",
    )
    # Labels that the network knows nothing of: it scores like chance, which is worth a doubt.
    labels = (np.arange(40) % 4).astype(np.int64)
    images = generator.normal(0, 1, (40, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images, label=labels)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _build_plan(project: Path) -> Plan:
    recipe = read_recipe(project / "recipe.toml")
    return make_plan(recipe, {name: get_target(name) for name in recipe.targets})


def _quantized(project: Path) -> tuple[Path, Report]:
    data = {"source": "npz", "path": "data.npz", "labels": "label"}
    request = Quantizing(
        project / "net.onnx",
        project / "int8.onnx",
        {"calibration": data, "evaluation": data},
        {"scheme": "static_wi8_ai8"},
        min_sqnr_db=0,
    )
    report = quantize_file(quantize_plan(request), request, progress=Silence(), log=project / "quantize.log")
    return request.out, report


def _numbers(path: Path) -> dict[str, bytes]:
    """Return every constant of a graph: weights, scales and zero points."""
    return {item.name: numpy_helper.to_array(item).tobytes() for item in onnx.load(path).graph.initializer}


def test_quantize_and_build_settle_the_same_numbers_and_have_the_same_doubts(project: Path) -> None:
    quantized, report = _quantized(project)
    built = build(_build_plan(project), out=project / "out", progress=Silence(), log=project / "build.log")
    shipped = (
        built.path / "raspberry-pi" / "models" / ArtifactSpec.parse("onnx:static_wi8_ai8").file_name("net")
    )
    assert _numbers(quantized) == _numbers(shipped)
    assert [node.op_type for node in onnx.load(quantized).graph.node] == [
        node.op_type for node in onnx.load(shipped).graph.node
    ]
    for findings in (report.findings, built.report.findings):
        assert any("no better than chance" in finding for finding in findings), findings
    gates = [{gate.gate: gate.passed for gate in found.gates} for found in (report, built.report)]
    assert gates[0] == gates[1]


def test_a_build_takes_what_calibrate_wrote_as_its_own(project: Path) -> None:
    request = Calibrating(
        project / "net.onnx", project / "net.stats", {"source": "npz", "path": "data.npz", "labels": "label"}
    )
    statistics = calibrate_file(
        request, calibration_plan(request), progress=Silence(), log=project / "calibrate.log"
    )
    plain = build(_build_plan(project), out=project / "out", progress=Silence(), log=project / "build.log")
    text = RECIPE.replace("[gates]", 'statistics = "net.stats"\n[gates]')
    (project / "recipe.toml").write_text(text)
    served = build(
        _build_plan(project), out=project / "served", progress=Silence(), log=project / "build.log"
    )
    name = Path("raspberry-pi", "models", "net-static_wi8_ai8.onnx")
    assert statistics.model_sha256
    assert (plain.path / name).read_bytes() == (served.path / name).read_bytes()

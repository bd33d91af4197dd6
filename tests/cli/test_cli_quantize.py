"""`edge-export quantize`: an ONNX file and data in, a measured file out, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cli_ground import make_tiny
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper
from report_ground import reported

Call = Callable[..., Result]


@pytest.fixture
def data(workplace: Path, tiny_onnx: Path) -> Path:
    """Calibration and labelled evaluation data; the labels are the float model's own answers."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((40, 1, 8, 8)).astype(np.float32)
    np.savez(workplace / "data.npz", image=images)
    session = onnxruntime.InferenceSession(str(tiny_onnx), providers=["CPUExecutionProvider"])
    labels = session.run(None, {"image": images})[0].argmax(-1)
    np.savez(workplace / "labelled.npz", image=images, label=labels)
    return workplace / "data.npz"


def refused(result: Result, exit_code: int, *mentions: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error[")]
    assert result.exit_code == exit_code, result.stderr
    assert len(lines) == 1 and "; fix: " in lines[0]
    for mention in mentions:
        assert mention in lines[0], lines[0]
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    "scheme",
    ["static_wi8_ai8", "static_wi8_ai8_u", "dynamic_wi8_ai8", "weight_only_wi8", "weight_only_wi4_b32"],
)
def test_a_file_comes_out_that_runs_and_says_what_it_cost(
    call: Call, tiny_onnx: Path, data: Path, scheme: str
) -> None:
    result = call("quantize", tiny_onnx, "--data", data, "--scheme", scheme, "-o", "out.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    report = reported(json.loads(result.stdout))
    (artifact,) = report["artifacts"]
    assert artifact["artifact"] == f"onnx:{scheme}"
    assert artifact["evidence"]["fidelity"]["sqnr_db"] > 15
    assert artifact["size_bytes"] == Path("out.onnx").stat().st_size < tiny_onnx.stat().st_size
    assert artifact["evidence"]["structure"]["kernels"] or scheme == "weight_only_wi8"
    session = onnxruntime.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 10)


def test_people_read_what_it_cost(call: Call, tiny_onnx: Path, data: Path) -> None:
    result = call(
        "quantize", tiny_onnx, "--data", data, "--evaluation", "labelled.npz", "--labels", "label",
        "-o", "out.onnx", "--report", "report.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for words in ("SQNR", "points lost", "95 % interval", "never a device's latency"):
        assert words in result.stdout
    assert json.loads(Path("report.json").read_text())["artifacts"][0]["evidence"]["task"]["metric"] == "top1"


def test_a_budget_is_climbed_to_and_traced(call: Call, tiny_onnx: Path, data: Path) -> None:
    result = call(
        "quantize", tiny_onnx, "--data", data, "--evaluation", "labelled.npz", "--labels", "label",
        "--rule", "minmax", "--max-drop", "0", "--scheme", "weight_only_wi4_b32", "-o", "out.onnx", "--json",
    )  # fmt: skip
    if result.exit_code == 14:
        refused(result, 14, "no rung keeps max_drop = 0 points of top1", "layers that resist")
        return
    assert result.exit_code == 0, result.stderr
    (recovery,) = reported(json.loads(result.stdout))["recovery"]
    assert recovery["budget"] == 0 and recovery["rungs"][-1]["holds"]
    assert reported(json.loads(result.stdout))["artifacts"][0]["evidence"]["task"]["drop_points"] <= 0


def test_methods_are_applied_in_the_order_given(call: Call, tiny_onnx: Path, data: Path) -> None:
    result = call(
        "quantize",
        tiny_onnx,
        "--data",
        data,
        "--recover",
        "rounding",
        "--recover",
        "bias",
        "-o",
        "out.onnx",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    (recovery,) = reported(json.loads(result.stdout))["recovery"]
    assert [rung["name"] for rung in recovery["rungs"]] == ["auto ranges", "rounding", "bias"]


def test_kept_layers_come_from_options_and_from_a_file(call: Call, tiny_onnx: Path, data: Path) -> None:
    model = make_tiny()
    for node in model.graph.node:
        node.name = f"the_{node.op_type}"
    onnx.save(model, tiny_onnx)
    Path("keep.txt").write_text("# spared by an earlier run\nthe_Gemm\n")
    result = call(
        "quantize", tiny_onnx, "--data", data, "--keep-from", "keep.txt", "-o", "out.onnx", "--json"
    )
    assert result.exit_code == 0, result.stderr
    left = reported(json.loads(result.stdout))["artifacts"][0]["coverage"]["left_float"]
    assert left == {"Gemm: kept in float by the recipe": 1}
    Path("out.onnx").unlink()
    refused(
        call("quantize", tiny_onnx, "--data", data, "--keep", "the_Gem", "-o", "out.onnx"),
        2,
        "'the_Gem' matches no operator",
    )


def test_a_dry_run_makes_nothing(call: Call, tiny_onnx: Path, data: Path) -> None:
    result = call("quantize", tiny_onnx, "--data", data, "--max-drop", "1", "-o", "out.onnx", "--plan")
    assert result.exit_code == 0, result.stderr
    assert "onnx:static_wi8_ai8" in result.stdout and not Path("out.onnx").exists()


def test_statistics_collected_before_are_used(call: Call, tiny_onnx: Path, data: Path) -> None:
    assert call("calibrate", tiny_onnx, "--data", data, "-o", "tiny.stats").exit_code == 0
    for arguments, out in (
        (("--data", data), "a.onnx"),
        (("--data", data, "--statistics", "tiny.stats"), "b.onnx"),
    ):
        result = call("quantize", tiny_onnx, *arguments, "-o", out)
        assert result.exit_code == 0, result.stderr
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


@pytest.mark.parametrize("opset", range(13, 24))
def test_graphs_of_every_opset(call: Call, data: Path, opset: int) -> None:
    model = make_tiny()
    model.opset_import[0].version = opset
    model.ir_version = 7 if opset < 18 else 10
    onnx.save(model, "old.onnx")
    result = call("quantize", "old.onnx", "--data", data, "-o", "out.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    assert reported(json.loads(result.stdout))["artifacts"][0]["evidence"]["fidelity"]["sqnr_db"] > 15


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_models_are_refused_by_name(call: Call, data: Path, kind: int) -> None:
    weight = helper.make_tensor("matrix", kind, [64, 10], np.ones(640, np.float32))
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["half"], to=kind),
        helper.make_node("MatMul", ["half", "matrix"], ["product"], name="product"),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [weight],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), "half.onnx"
    )
    result = call("quantize", "half.onnx", "--data", data, "--scheme", "weight_only_wi8", "-o", "out.onnx")
    refused(result, 12, "bfloat16" if kind == TensorProto.BFLOAT16 else "float16")


def test_a_quantised_model_is_refused_by_name(call: Call, tiny_onnx: Path, data: Path) -> None:
    assert call("quantize", tiny_onnx, "--data", data, "-o", "int8.onnx").exit_code == 0
    refused(
        call("quantize", "int8.onnx", "--data", data, "-o", "out.onnx"),
        12,
        "quantised already",
        "float model",
    )


def test_an_empty_graph_and_one_without_products(call: Call, data: Path) -> None:
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])]
    opset = [helper.make_opsetid("", 18)]
    empty = helper.make_graph(
        [], "empty", inputs, [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])]
    )
    onnx.save(helper.make_model(empty, opset_imports=opset, ir_version=8), "empty.onnx")
    result = call("quantize", "empty.onnx", "--data", data, "-o", "out.onnx")
    assert result.exit_code in {10, 12} and "error[" in result.stderr and "Traceback" not in result.stderr
    soft = helper.make_graph([helper.make_node("Softmax", ["image"], ["y"])], "soft", inputs, outputs)
    onnx.save(helper.make_model(soft, opset_imports=opset, ir_version=8), "soft.onnx")
    refused(
        call("quantize", "soft.onnx", "--data", data, "-o", "out.onnx"), 12, "quantised none of 1 operators"
    )


@pytest.mark.parametrize(
    ("fault", "exit_code", "mention"),
    [("nan", 13, "NaN"), ("inf", 13, "Inf"), ("none", 13, ""), ("shape", 13, "image"), ("name", 13, "image")],
)
def test_bad_samples_are_named(call: Call, tiny_onnx: Path, fault: str, exit_code: int, mention: str) -> None:
    images = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
    if fault in {"nan", "inf"}:
        images[3, 0, 2, 2] = np.nan if fault == "nan" else np.inf
    if fault == "none":
        images = images[:0]
    if fault == "shape":
        images = images[:, :, :4]
    np.savez("bad.npz", **{"picture" if fault == "name" else "image": images})
    refused(call("quantize", tiny_onnx, "--data", "bad.npz", "-o", "out.onnx"), exit_code, mention)


@pytest.mark.parametrize("kind", ["constant", "one sample", "outlier", "zero"])
def test_odd_data_gives_a_file_with_finite_scales_or_a_refusal(
    call: Call, tiny_onnx: Path, kind: str
) -> None:
    images = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
    if kind == "constant":
        images[:] = 0.5
    if kind == "zero":
        images[:] = 0.0
    if kind == "one sample":
        images = images[:1]
    if kind == "outlier":
        images[2, 0, 1, 1] = 3e38
    np.savez("odd.npz", image=images)
    result = call("quantize", tiny_onnx, "--data", "odd.npz", "-o", "out.onnx")
    if result.exit_code:
        assert result.exit_code in {13, 14}, result.stderr
        assert "; fix: " in result.stderr and not Path("out.onnx").exists()
        return
    for tensor in onnx.load("out.onnx").graph.initializer:
        array = numpy_helper.to_array(tensor)
        assert array.dtype.kind != "f" or np.isfinite(array).all()


def test_usage_that_makes_no_sense(call: Call, tiny_onnx: Path, data: Path) -> None:
    refused(call("quantize", tiny_onnx, "-o", "out.onnx"), 13, "needs calibration data")
    refused(
        call("quantize", tiny_onnx, "--data", data, "--labels", "label", "-o", "out.onnx"), 2, "--evaluation"
    )
    refused(call("quantize", tiny_onnx, "--data", data, "-o", "out.tflite"), 2, "not an .onnx file")
    refused(call("quantize", tiny_onnx, "--data", data, "-o", tiny_onnx), 2, "is the model itself")
    refused(call("quantize", "net.py", "--data", data, "-o", "out.onnx"), 2, "edge-export init")
    refused(
        call("quantize", tiny_onnx, "--data", "data.csv", "-o", "out.onnx"), 2, "does not say how to read it"
    )
    refused(call("quantize", "missing.onnx", "--data", data, "-o", "out.onnx"), 10, "missing.onnx")


def test_the_contract_that_a_file_carries_is_carried_on(call: Call, tiny_onnx: Path, data: Path) -> None:
    model = onnx.load(tiny_onnx)
    for key, value in {
        "edge.contract": '{"contract": {"kind": "identity"}}',
        "edge.model": "tiny 1.0.0",
        "else": "no",
    }.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, tiny_onnx)
    result = call("quantize", tiny_onnx, "--data", data, "-o", "out.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    carried = {item.key: item.value for item in onnx.load("out.onnx").metadata_props}
    assert carried == {"edge.contract": '{"contract": {"kind": "identity"}}', "edge.model": "tiny 1.0.0"}

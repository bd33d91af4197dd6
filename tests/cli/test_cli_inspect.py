"""What `inspect` says of files, recipes and folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from cli_ground import make_tiny
from click.testing import Result

from exporter.bundle.manifest import write_manifest
from exporter.jobs.inspect import GraphFacts, OperatorFacts, inspect_onnx, judge_runtimes
from targets.discovery import all_targets

Call = Callable[..., Result]
CONV_MACS = 4 * 8 * 8 * 9
GEMM_MACS = 256 * 10


def test_operators_carry_counted_work_and_stored_bytes(tiny_onnx: Path) -> None:
    facts = inspect_onnx(tiny_onnx)
    assert facts.operators == (
        OperatorFacts("Gemm", "ai.onnx", 1, GEMM_MACS, 4 * 2560),
        OperatorFacts("Conv", "ai.onnx", 1, CONV_MACS, 4 * 36),
        OperatorFacts("Flatten", "ai.onnx", 1, 0, 0),
        OperatorFacts("Relu", "ai.onnx", 1, 0, 0),
    )
    assert (facts.macs, facts.parameters, facts.constant_bytes) == (CONV_MACS + GEMM_MACS, 2596, 4 * 2596)
    assert (facts.opset, facts.ir_version, facts.producer) == (18, 8, "tests")
    assert (facts.assumed_axes, facts.uncounted, facts.quantized_by) == ({"batch": 1}, (), None)


def test_work_grows_with_the_sizes_of_named_axes(tiny_onnx: Path) -> None:
    assert inspect_onnx(tiny_onnx, {"batch": 3}).macs == 3 * (CONV_MACS + GEMM_MACS)


def test_shared_constants_count_once_and_unnamed_nodes_are_kept_apart(workplace: Path) -> None:
    model = make_tiny()
    second = onnx.NodeProto()
    second.CopyFrom(model.graph.node[0])
    second.output[0] = "again"
    model.graph.node.insert(1, second)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, ["batch", 4, 8, 8])
    )
    path = workplace / "twice.onnx"
    onnx.save(model, path)
    convolution = next(fact for fact in inspect_onnx(path).operators if fact.op == "Conv")
    assert convolution == OperatorFacts("Conv", "ai.onnx", 2, 2 * CONV_MACS, 4 * 36)


def test_what_would_be_quantised_is_said_with_the_reason_for_the_rest(tiny_onnx: Path) -> None:
    coverage = inspect_onnx(tiny_onnx).static_coverage
    assert coverage is not None
    assert {layer.op for layer in coverage.layers if layer.quantized} >= {"Conv", "Gemm"}
    assert (coverage.mac_share, coverage.weight_share) == (1.0, 1.0)
    kept = inspect_onnx(tiny_onnx, keep=["node_2"]).static_coverage
    assert kept is not None
    assert [layer.reason for layer in kept.layers if layer.op == "Gemm"] == ["kept in float by the recipe"]
    assert kept.mac_share == pytest.approx(CONV_MACS / (CONV_MACS + GEMM_MACS))


def verdicts(facts: GraphFacts) -> dict[str, str]:
    judged = judge_runtimes(facts, all_targets())
    return {f"{verdict.target} {verdict.runtime}": verdict.reason for verdict in judged}


def test_runtimes_are_judged_by_their_data(tiny_onnx: Path, workplace: Path) -> None:
    dynamic = verdicts(inspect_onnx(tiny_onnx))
    assert dynamic["android onnxruntime-cpu"] == ""
    assert dynamic["android onnxruntime-xnnpack"] == "axes batch are dynamic, and it needs fixed shapes"
    model = make_tiny()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, workplace / "fixed.onnx")
    fixed = verdicts(inspect_onnx(workplace / "fixed.onnx"))
    assert fixed["android onnxruntime-xnnpack"] == ""
    assert fixed["android onnxruntime-qnn"] == "the file is float, and it computes integers only"
    model.ir_version, model.opset_import[0].version = 11, 23
    onnx.save(model, workplace / "new.onnx")
    assert "and it takes up to" in verdicts(inspect_onnx(workplace / "new.onnx"))["ios onnxruntime-cpu"]


def test_people_and_machines_are_told_the_same(tiny_onnx: Path, call: Call) -> None:
    document = json.loads(call("inspect", tiny_onnx, "--json").stdout)
    assert document["macs"] == CONV_MACS + GEMM_MACS
    assert document["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert {entry["target"] for entry in document["artifacts"]} == set(all_targets())
    result = call("inspect", tiny_onnx)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny.onnx  opset ai.onnx 18; IR 8; made by tests"
    assert "inputs      image float32[batch, 1, 8, 8]" in lines
    assert "work        4.86 k multiply-accumulates with batch = 1" in lines
    assert max(map(len, lines)) <= 80


def test_names_inside_a_file_are_inert(workplace: Path, call: Call) -> None:
    model = make_tiny(axis="\x1b]0;owned\x07")
    model.producer_name = "[red]\x1b[31m"
    onnx.save(model, workplace / "hostile.onnx")
    stdout = call("inspect", "hostile.onnx").stdout
    assert stdout.replace("\n", "").isprintable()
    assert r"made by [red]\x1b[31m" in stdout


def test_a_truncated_file_says_so(tiny_onnx: Path, call: Call) -> None:
    tiny_onnx.write_bytes(tiny_onnx.read_bytes()[:5000])
    result = call("inspect", tiny_onnx)
    assert (result.exit_code, result.stderr.count("\n")) == (10, 1)
    assert "truncated (5000 bytes)" in result.stderr


@pytest.mark.parametrize(
    ("location", "status"), [("../secret.bin", 11), ("/etc/passwd", 11), ("link.bin", 11), ("absent.bin", 10)]
)
def test_external_data_is_not_followed_out_of_the_folder(
    location: str, status: int, workplace: Path, call: Call
) -> None:
    (workplace.parent / "secret.bin").write_bytes(bytes(10240))
    (workplace / "link.bin").symlink_to(workplace.parent / "secret.bin")
    model = make_tiny()
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (workplace / "outside.onnx").write_bytes(model.SerializeToString())
    result = call("inspect", "outside.onnx")
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert location in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "status", "says"),
    [
        ("model.pt2", b"PK\x03\x04rest", 12, "is an exported program, which says nothing of itself"),
        (
            "model.bin",
            b"GGUFrest",
            12,
            "looks like a GGUF file; fix: give an .onnx, .ort or .tflite file, a recipe",
        ),
        ("model.onnx", b"", 10, "is empty (0 bytes)"),
    ],
)
def test_other_files_are_refused_by_what_they_are(
    name: str, content: bytes, status: int, says: str, call: Call
) -> None:
    Path(name).write_bytes(content)
    result = call("inspect", name)
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert says in result.stderr


def test_a_bundle_lists_its_artifacts_with_their_bytes(workplace: Path, call: Call) -> None:
    bundle = workplace / "ios"
    (bundle / "models" / "a.mlpackage").mkdir(parents=True)
    (bundle / "models" / "a.mlpackage" / "weights").write_bytes(bytes(1500))
    (bundle / "models" / "a.mlpackage" / "spec").write_bytes(bytes(500))
    (bundle / "models" / "a.onnx").write_bytes(bytes(999))
    artifacts = [
        {"artifact": "mlpackage:float16", "file": "a.mlpackage"},
        {"artifact": "onnx:float32", "file": "a.onnx"},
    ]
    write_manifest(bundle, {"name": "a", "version": "1.0.0", "target": "ios", "artifacts": artifacts})
    assert call("inspect", "ios").stdout == (
        "a 1.0.0 for ios  3 files, 3.00 kB\n\n"
        "artifact          file                  size\n"
        "mlpackage:float16 models/a.mlpackage 2.00 kB\n"
        "onnx:float32      models/a.onnx        999 B\n\n"
        "next\n"
        "  edge-export validate ios\n"
    )


def test_a_folder_that_no_build_made_is_refused(workplace: Path, call: Call) -> None:
    (workplace / "empty").mkdir()
    result = call("inspect", "empty")
    assert result.exit_code == 10
    assert "empty holds neither manifest.json nor report.json" in result.stderr


def test_a_damaged_report_is_refused(workplace: Path, call: Call) -> None:
    (workplace / "report.json").write_text('{"model": 3}')
    result = call("inspect", ".")
    assert (result.exit_code, result.stderr.count("\n")) == (19, 1)
    assert "report.json is damaged: " in result.stderr

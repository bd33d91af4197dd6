"""Evidence comes from running the bytes that ship, on inputs that data does not hold too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.artifacts import Artifact, ArtifactSpec, Coverage, TensorSpec
from exporter.bundle.golden import GoldenInputs
from exporter.errors import CalibrationError, GateError, InputError
from exporter.judging.metrics import top1
from exporter.judging.reference import Reference
from exporter.judging.scoring import Judging
from exporter.runtimes import worker
from exporter.runtimes.worker import read_samples
from exporter.stages.validate import edge_cases, make_reference, validate
from exporter.system.files import digest

SPECS = (TensorSpec("x", "float32", ("batch", 4)),)


def _model(path: Path, *, scale: float = 1.0, middle: str = "Identity", batch: str | int = "batch") -> Path:
    matrix = (np.eye(4, 3, dtype=np.float32) + np.float32(0.1)) * np.float32(scale)
    graph = helper.make_graph(
        [helper.make_node(middle, ["x"], ["y"]), helper.make_node("MatMul", ["y", "m"], ["out"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(matrix, "m")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _samples(count: int = 6) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.uniform(0.5, 2, (1, 4)).astype(np.float32)} for _ in range(count)]


def _reference(
    folder: Path,
    *,
    middle: str = "Identity",
    samples: Sequence[dict[str, np.ndarray]] | None = None,
    golden: Sequence[dict[str, np.ndarray]] = (),
) -> Reference:
    shown = _samples() if samples is None else samples
    model = _model(folder / "float.onnx", middle=middle)
    labels = np.array([int((sample["x"] @ (np.eye(4, 3) + 0.1)).argmax()) for sample in shown])
    edges = edge_cases(SPECS, {"batch": 1}, shown)
    return make_reference(
        model,
        Judging(shown, labels, "top1", top1),
        edges,
        workdir=folder / "reference",
        golden=GoldenInputs(tuple(golden)),
    )


def _artifact(path: Path) -> Artifact:
    spec = ArtifactSpec.parse("onnx:static_wi8_ai8")
    return Artifact(spec, path, path.stat().st_size, digest(path), SPECS, (), Coverage(()))


def test_the_float_model_itself_is_perfect_evidence(tmp_path: Path) -> None:
    reference = _reference(tmp_path)
    evidence = validate(_artifact(_model(tmp_path / "same.onnx")), reference, workdir=tmp_path / "validation")
    assert evidence.fidelity is not None
    assert evidence.fidelity.sqnr_db == 200
    assert evidence.task is not None
    assert (evidence.task.reference, evidence.task.drop) == (1.0, 0.0)
    assert [case.name for case in evidence.edge_cases] == [
        "zeros",
        "lowest seen",
        "highest seen",
        "batch of 3",
    ]
    assert all(case.passed for case in evidence.edge_cases)
    assert evidence.runtime == "onnxruntime-cpu"
    assert evidence.latency is not None
    assert 0 < evidence.latency.p50_ms <= evidence.latency.p90_ms


def test_an_error_is_measured_as_it_is(tmp_path: Path) -> None:
    evidence = validate(
        _artifact(_model(tmp_path / "off.onnx", scale=1.1)), _reference(tmp_path), workdir=tmp_path / "v"
    )
    assert evidence.fidelity is not None
    assert evidence.fidelity.sqnr_db == pytest.approx(
        20.0, abs=0.01
    )  # 10 % of the amplitude is 1 % of the power
    assert evidence.fidelity.agreement == 1.0


def test_an_artifact_that_fails_on_an_edge_alone_is_told_by_that_edge(tmp_path: Path) -> None:
    artifact = _artifact(_model(tmp_path / "one.onnx", batch=1))
    evidence = validate(artifact, _reference(tmp_path), workdir=tmp_path / "v")
    verdicts = {case.name: case.passed for case in evidence.edge_cases}
    assert verdicts == {"zeros": True, "lowest seen": True, "highest seen": True, "batch of 3": False}


def test_an_answer_that_is_not_finite_where_the_model_is_fails_its_edge(tmp_path: Path) -> None:
    artifact = _artifact(_model(tmp_path / "log.onnx", middle="Log"))
    evidence = validate(artifact, _reference(tmp_path), workdir=tmp_path / "v")
    zeros = next(case for case in evidence.edge_cases if case.name == "zeros")
    assert not zeros.passed
    assert "NaN or infinity" in zeros.detail


def _golden_answers(reference: Reference, artifact: Artifact) -> np.ndarray:
    return np.concatenate([a["out"] for a in read_samples(reference.golden_answers / artifact.path.name)])


def test_golden_samples_are_answered_in_the_child_that_answers_the_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = [{"x": np.array([[1, 2, 3, number]], np.float32)} for number in range(3)]
    reference = _reference(tmp_path, golden=golden)
    matrix = np.eye(4, 3, dtype=np.float32) + np.float32(0.1)
    wanted = np.concatenate([sample["x"] @ matrix for sample in golden])
    np.testing.assert_allclose(
        np.concatenate([a["out"] for a in reference.golden_wanted()]), wanted, rtol=1e-6
    )
    started: list[Path] = []
    original = worker.run_artifact

    def counted(path: Path, *arguments: object, **more: object) -> object:
        started.append(path)
        return original(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("exporter.stages.validate.run_artifact", counted)
    artifact = _artifact(_model(tmp_path / "off.onnx", scale=1.1))
    evidence = validate(artifact, reference, workdir=tmp_path / "v")
    assert len(started) == 2, "one child for the evaluation, one for all the rest"
    assert [case.name for case in evidence.edge_cases][-1] == "batch of 3"
    np.testing.assert_allclose(_golden_answers(reference, artifact), 1.1 * wanted, rtol=1e-6)


def test_an_edge_that_fails_leaves_the_golden_samples_answered(tmp_path: Path) -> None:
    golden = [{"x": np.array([[1, 2, 3, number]], np.float32)} for number in range(2)]
    reference = _reference(tmp_path, golden=golden)
    artifact = _artifact(_model(tmp_path / "one.onnx", batch=1))
    evidence = validate(artifact, reference, workdir=tmp_path / "v")
    assert [case.passed for case in evidence.edge_cases] == [True, True, True, False]
    assert _golden_answers(reference, artifact).shape == (2, 3)


def test_a_float_model_that_answers_nan_to_a_picture_names_it(tmp_path: Path) -> None:
    golden = [{"x": np.array([[1, 2, 3, number]], np.float32)} for number in (0, -1)]
    with pytest.raises(GateError, match="golden picture 1 with NaN in out"):
        _reference(tmp_path, middle="Sqrt", golden=golden)


def test_a_float_model_that_answers_nan_names_the_sample(tmp_path: Path) -> None:
    samples = _samples()
    samples[4] = {"x": np.full((1, 4), -1, np.float32)}
    with pytest.raises(GateError, match="evaluation sample 4 with NaN in out"):
        _reference(tmp_path, middle="Sqrt", samples=samples)


def test_a_file_its_runtime_refuses_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x08\x12\x00")
    with pytest.raises(InputError, match=r"cannot load .*broken\.onnx"):
        validate(_artifact(path), _reference(tmp_path), workdir=tmp_path / "v")


def test_edge_cases_need_a_sample_and_keep_integers_real() -> None:
    specs = (TensorSpec("ids", "int64", ("batch", 3)), TensorSpec("x", "float32", ("batch", 2)))
    with pytest.raises(CalibrationError):
        edge_cases(specs, {"batch": 1}, [])
    sample = {"ids": np.array([[5, 6, 7]]), "x": np.array([[-1.0, 3.0]], np.float32)}
    cases = dict(edge_cases(specs, {"batch": 1}, [sample]))
    assert np.array_equal(cases["zeros"]["ids"], sample["ids"])
    assert (cases["lowest seen"]["x"] == -1).all()
    assert (cases["highest seen"]["x"] == 3).all()
    assert cases["batch of 3"]["ids"].shape == (3, 3)


def test_a_model_without_a_free_batch_has_no_batch_case() -> None:
    names = [name for name, _ in edge_cases((TensorSpec("x", "float32", (1, 4)),), {}, _samples())]
    assert names == ["zeros", "lowest seen", "highest seen"]

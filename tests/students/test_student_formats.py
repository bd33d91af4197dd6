"""Every family through every format, small: the float graph is torch's, int8 is close to it, all of it converts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from student_ground import CASES, Shipped, feeds, student_source, tokens

from exporter.artifacts import TensorSpec
from exporter.formats.mlpackage import producer as mlpackage
from exporter.runtimes.onnxruntime_cpu import OnnxModel

# Measured on random weights, less a few decibels. Depth loses most: errors add up over layers that no training
# has made robust, and MobileNetV2's linear bottlenecks have the widest ranges.
INT8_FLOORS_DB = {
    "v2": 19,
    "v3-small": 32,
    "v3-large-relu": 24,
    "lite0": 18,
    "encoder": 32,
    "encoder-mean": 31,
    "encoder-padding": 31,
    "ds-cnn": 36,
}
ALL_INT8 = {"v2", "v3-large-relu", "lite0", "ds-cnn"}
"""Students that a static scheme computes in integers from end to end."""


SOME = [
    name if name in {"v3-small", "encoder", "ds-cnn"} else pytest.param(name, marks=pytest.mark.nightly)
    for name in CASES
]


class Warehouse:
    """Students as float graphs, each exported when it is first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._made: dict[str, Shipped] = {}

    def __getitem__(self, name: str) -> Shipped:
        if name not in self._made:
            self._made[name] = Shipped.make(student_source(CASES[name]), self._factory.mktemp(name))
        return self._made[name]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    return Warehouse(tmp_path_factory)


@pytest.mark.parametrize("name", SOME)
def test_the_onnx_graph_is_the_student_for_any_batch(shipped: Warehouse, name: str) -> None:
    student = shipped[name]
    assert student.parity.sqnr_db > 100
    model = OnnxModel(student.onnx)
    assert model.inputs == tuple(
        TensorSpec(spec.name, spec.dtype, ("batch", *spec.shape[1:])) for spec in student.source.inputs
    )
    batch = feeds(student.source.inputs, 5, 1, {})
    np.testing.assert_allclose(
        model.run(batch)["logits"], student.source.forward(batch)[0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", SOME)
def test_static_int8_onnx_computes_all_that_weighs_in_integers(shipped: Warehouse, name: str) -> None:
    artifact = shipped[name].produce("onnx:static_wi8_ai8")
    assert shipped[name].fidelity(artifact).sqnr_db > INT8_FLOORS_DB[name]
    assert artifact.coverage.mac_share == 1.0
    if name in ALL_INT8:
        assert artifact.coverage.quantized_count == len(artifact.coverage.layers)


def test_an_encoder_takes_sentences_of_any_length(tmp_path: Path) -> None:
    case = CASES["encoder"]
    inputs = tokens("ids", "mask", length="sequence")
    source = student_source(
        type(case)(case.family, inputs, options={**case.options, "positions": 40}), axes={"sequence": 12}
    )
    model = OnnxModel(Shipped.make(source, tmp_path).onnx)
    for length in (3, 40):
        given = feeds(inputs, 2, 0, {"sequence": max(length, 4)})
        np.testing.assert_allclose(model.run(given)["logits"], source.forward(given)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_litert_files_answer_as_the_student_does(shipped: Warehouse, name: str) -> None:
    student = shipped[name]
    assert student.fidelity(student.produce("tflite:float32")).sqnr_db > 90
    quantized = student.produce("tflite:static_wi8_ai8")
    assert student.fidelity(quantized).sqnr_db > INT8_FLOORS_DB[name]
    assert quantized.coverage.mac_share > 0.95


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_core_ml_packages_hold_the_students_weights(shipped: Warehouse, name: str) -> None:
    student = shipped[name]
    artifact = student.produce("mlpackage:float16")
    findings = mlpackage.inspect_structure(
        artifact.path, student.folder / "program.pt2", log=student.folder / "inspect.log"
    )
    assert findings["weights"]["sqnr_db"] > 60
    assert findings["weights"]["unmatched"] == []

"""Documents of models that no small build makes: compressed ones, folders, files that nothing here runs, odd licences."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from exporter.artifacts import (
    Artifact,
    ArtifactSpec,
    Coverage,
    Drop,
    Evidence,
    Fidelity,
    TaskScore,
    TensorSpec,
)
from exporter.attesting.bill_of_materials import bill_of_materials
from exporter.attesting.facts import BuildFacts, DataFact, FloatFigures
from exporter.attesting.model_card import model_card
from exporter.system.files import digest, size_bytes
from targets.base import Delivery, RuntimeCapability

FACTS = BuildFacts(
    name="words",
    version="2.0.0",
    license="MIT OR Apache-2.0",
    description="1. Counts words - or not",
    architecture=None,
    from_torch=True,
    contract={"kind": "identity"},
    labels=(),
    datasets=(
        DataFact("calibration", "text", "calibration.txt", 8, "a" * 64),
        DataFact("training", "python", "data.py:training", None, None),
    ),
    float_figures=FloatFigures("b" * 64, 10, 20),
    rule="mse",
    compressed_by=("prune", "qat"),
    recovered_by={"weight_only_wi8": ("smooth", "bias"), "static_wi8_ai8": ("float layers",)},
)


def deliver(folder: Path, spec: str, evidence: Evidence, *, is_folder: bool = False) -> Delivery:
    parsed = ArtifactSpec.parse(spec)
    path = folder / "models" / parsed.file_name("words")
    path.parent.mkdir(exist_ok=True)
    if is_folder:
        (path / "Data").mkdir(parents=True)
        (path / "Manifest.json").write_text("{}")
        (path / "Data" / "weight.bin").write_bytes(b"weights")
    else:
        path.write_bytes(spec.encode())
    artifact = Artifact(
        parsed, path, size_bytes(path), digest(path),
        (TensorSpec("tokens", "int64", (1, "time")),), (TensorSpec("scores", "float32", (1, 3)),), Coverage(()),
    )  # fmt: skip
    runtime = RuntimeCapability("somewhere", parsed.format, frozenset({str(parsed.scheme)}))
    return Delivery(artifact, dataclasses.replace(evidence, artifact=parsed), (runtime,))


@pytest.fixture
def deliveries(tmp_path: Path) -> list[Delivery]:
    spec = ArtifactSpec.parse("onnx:float32")
    own = TaskScore("metrics.py:words", 1e-05, 2.5e-05, Drop(-0.0015, -0.002, 0.001, 8))
    run = Evidence(spec, "litert-xnnpack", "2.3.0", task=own, fidelity=Fidelity(41.25, 1.0, 0.5, None, 8))
    return [
        deliver(tmp_path, "mlpackage:weight_only_wi8", Evidence(spec, not_run="Core ML is not here"), is_folder=True),
        deliver(tmp_path, "tflite:float16", run),
    ]  # fmt: skip


def test_the_bill_of_materials_is_valid_and_lists_the_folder_file_by_file(deliveries: list[Delivery]) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    document: dict[str, Any] = bill_of_materials(FACTS, "ios", deliveries)
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    package = document["components"][0]
    assert "hashes" not in package, "a folder has no bytes of its own"
    assert [item["name"] for item in package["components"]] == [
        "models/words-weight_only_wi8.mlpackage/Data/weight.bin",
        "models/words-weight_only_wi8.mlpackage/Manifest.json",
    ]
    names = {item["name"] for item in document["components"]}
    assert {"coremltools", "litert-torch", "torch-pruning", "accelerate", "torch"} <= names
    model = document["metadata"]["component"]
    assert model["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert "task" not in model["modelCard"]["modelParameters"], (
        "what a metric of the user's means is not known"
    )
    assert model["modelCard"]["considerations"] == {
        "technicalLimitations": ["words-weight_only_wi8.mlpackage: Core ML is not here"]
    }


def test_the_model_card_says_what_is_known(deliveries: list[Delivery]) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(model_card(FACTS, "ios", deliveries))
    assert (card.data.license, card.data.license_name) == ("other", "MIT OR Apache-2.0")
    assert card.data.pipeline_tag is None
    assert card.data.library_name == "coreml"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == (
        "metrics.py:words",
        2.5e-05,
        "other",
    )
    assert result.dataset_name == "calibration.txt"
    for line in (
        "1\\. Counts words - or not",
        "- compression: prune, qat",
        "- accuracy recovery of weight_only_wi8: smooth, bias",
        "- architecture: not stated in the recipe",
        "| training while compressing | `data.py:training` (python) | – | – |",
        "What the model itself was trained on: not stated in the recipe.",
        "- `words-weight_only_wi8.mlpackage` was not run: Core ML is not here.",
        "| `words-float16.tflite` | metrics.py:words | 0.0000 | 0.0000 | -0.00 (-0.00 to +0.00) | 41.2 | – |",
    ):
        assert line in card.text.splitlines(), line
    assert "static_wi8_ai8" not in card.text, "a scheme that is not in this bundle"


def test_documents_do_not_depend_on_where_the_files_lie(deliveries: list[Delivery], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "models").rename(elsewhere)
    moved = [
        dataclasses.replace(
            item, artifact=dataclasses.replace(item.artifact, path=elsewhere / item.artifact.path.name)
        )
        for item in deliveries
    ]
    before_moving = model_card(FACTS, "ios", moved)
    first = bill_of_materials(FACTS, "ios", moved)
    elsewhere.rename(tmp_path / "models")
    assert model_card(FACTS, "ios", deliveries) == before_moving
    assert bill_of_materials(FACTS, "ios", deliveries) == first
    assert bill_of_materials(FACTS, "android", deliveries)["serialNumber"] != first["serialNumber"]

"""The bill of materials: valid to CycloneDX's own strict validator, and true of the bytes it lists."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from attesting_ground import Built

BUNDLES = [("told", "raspberry-pi"), ("told", "ios"), ("bare", "raspberry-pi")]


@pytest.fixture(params=BUNDLES, ids="-".join)
def bundle(request: pytest.FixtureRequest) -> tuple[Built, str]:
    which, target = request.param
    return request.getfixturevalue(which), target


def bom_of(bundle: tuple[Built, str]) -> dict[str, Any]:
    built, target = bundle
    document: dict[str, Any] = built.document(f"{target}/bom.cdx.json")
    return document


def problem(document: Any) -> str | None:
    """Return what CycloneDX's strict validator says against `document`."""
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="pip install cyclonedx-python-lib[validation]"
    )
    from cyclonedx.schema import SchemaVersion

    found = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    return None if found is None else str(found)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {item["name"].removeprefix("edge-exporter:"): item["value"] for item in component["properties"]}


def test_the_strict_validator_of_cyclonedx_accepts_it(bundle: tuple[Built, str]) -> None:
    assert problem(bom_of(bundle)) is None


@pytest.mark.parametrize("damage", ["unknown key", "hash", "model card of a file", "no name"])
def test_the_validator_can_say_no(told: Built, damage: str) -> None:
    document = copy.deepcopy(told.document("ios/bom.cdx.json"))
    match damage:
        case "unknown key":
            document["metadata"]["component"]["modelCard"]["accuracy"] = 1
        case "hash":
            document["components"][0]["hashes"][0]["content"] = "abc"
        case "model card of a file":
            document["components"][0]["modelCard"]["modelParameters"]["inputs"] = "image"
        case "no name":
            del document["components"][0]["name"]
    assert problem(document) is not None


def test_another_reader_sees_the_same_components(told: Built) -> None:
    bom_module = pytest.importorskip("cyclonedx.model.bom")
    document = told.document("raspberry-pi/bom.cdx.json")
    bom = bom_module.Bom.from_json(document)
    assert bom.serial_number.urn == document["serialNumber"]
    assert bom.metadata.component.name == "tiny"
    assert bom.metadata.timestamp is None or "timestamp" not in document["metadata"]
    read = {str(component.purl) for component in bom.components if component.purl is not None}
    assert read == {item["purl"] for item in document["components"] if "purl" in item}
    assert {item.name for item in bom.components} == {item["name"] for item in document["components"]}


def test_it_lists_every_model_file_with_its_digest(bundle: tuple[Built, str]) -> None:
    built, target = bundle
    listed = {}
    for component in bom_of(bundle)["components"]:
        for item in (component, *component.get("components", [])):
            if "hashes" in item:
                assert [entry["alg"] for entry in item["hashes"]] == ["SHA-256"]
                listed[item["name"]] = item["hashes"][0]["content"]
    folder = built.path / target
    files = [path for path in (folder / "models").rglob("*") if path.is_file()]
    assert listed == {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def test_every_reference_leads_to_one_component(bundle: tuple[Built, str]) -> None:
    document = bom_of(bundle)
    root = document["metadata"]["component"]["bom-ref"]
    components = [item["bom-ref"] for item in document["components"]]
    assert len({root, *components}) == 1 + len(components)
    graph = {item["ref"]: item["dependsOn"] for item in document["dependencies"]}
    assert set(graph) == {root, *components}
    assert {ref for refs in graph.values() for ref in refs} == set(components), "all of it hangs together"


def test_libraries_are_those_installed_and_marked_as_no_part_of_what_ships(bundle: tuple[Built, str]) -> None:
    libraries = [item for item in bom_of(bundle)["components"] if "purl" in item]
    assert {"onnx", "onnxruntime", "edge-exporter", "numpy"} <= {item["name"] for item in libraries}
    for item in libraries:
        assert item["scope"] == "excluded"
        assert item["version"] == importlib.metadata.version(item["name"])


def test_a_model_that_came_as_onnx_was_not_made_by_torch(told: Built, bare: Built) -> None:
    def names(built: Built) -> set[str]:
        return {item["name"] for item in built.document("raspberry-pi/bom.cdx.json")["components"]}

    assert "torch" in names(told)
    assert "torch" not in names(bare)


def test_figures_are_those_of_the_evidence(told: Built) -> None:
    evidence = told.evidence("raspberry-pi")
    models = [
        item for item in told.document("raspberry-pi/bom.cdx.json")["components"] if "modelCard" in item
    ]
    assert {Path(item["name"]).name for item in models} == set(evidence)
    for item in models:
        found = evidence[Path(item["name"]).name]
        metrics = {
            metric["type"]: metric
            for metric in item["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        }
        assert float(metrics["top1"]["value"]) == pytest.approx(found["task"]["value"], abs=1e-6)
        lost = metrics["points of top1 lost against the float model"]
        assert float(lost["value"]) == pytest.approx(found["task"]["drop_points"], abs=1e-4)
        interval = found["task"]["interval"]
        assert float(lost["confidenceInterval"]["lowerBound"]) == pytest.approx(interval["low"], rel=1e-5)
        assert float(lost["confidenceInterval"]["upperBound"]) == pytest.approx(interval["high"], rel=1e-5)
        assert float(metrics["SQNR against the float model in dB"]["value"]) == pytest.approx(
            found["fidelity"]["sqnr_db"], rel=1e-5
        )
        assert {metric["slice"] for metric in metrics.values()} == {"evaluation data: data/evaluation.npz"}


def test_the_model_is_described_by_what_is_known(told: Built) -> None:
    model = told.document("ios/bom.cdx.json")["metadata"]["component"]
    assert model["licenses"] == [{"expression": "Apache-2.0"}]
    assert model["description"].startswith("Tells *five* things apart")
    assert model["hashes"] == [{"alg": "SHA-256", "content": told.report["model"]["float_sha256"]}]
    parameters = model["modelCard"]["modelParameters"]
    assert (parameters["task"], parameters["modelArchitecture"]) == ("classification", "TinyNet")
    assert parameters["inputs"] == [{"format": "image: float32 [1, 1, 8, 8]"}]
    assert [item["name"] for item in parameters["datasets"]] == [
        "data/calibration.npz",
        "data/evaluation.npz",
    ]
    calibration = {
        item["name"]: item["value"] for item in parameters["datasets"][0]["contents"]["properties"]
    }
    assert calibration["edge-exporter:fingerprint-sha256"] == told.report["data"]["calibration_fingerprint"]
    assert calibration["edge-exporter:samples"] == "16"
    assert properties(model)["parameters"] == str(told.report["model"]["parameters"])


def test_nothing_is_invented_for_a_recipe_that_says_little(bare: Built) -> None:
    model = bare.document("raspberry-pi/bom.cdx.json")["metadata"]["component"]
    assert set(model) == {"type", "bom-ref", "name", "version", "hashes", "modelCard", "properties"}
    assert set(model["modelCard"]) == {"modelParameters"}
    assert set(model["modelCard"]["modelParameters"]) == {"inputs", "outputs"}


def test_the_serial_number_is_a_function_of_the_content(told: Built, bare: Built) -> None:
    serials = [
        uuid.UUID(built.document(f"{target}/bom.cdx.json")["serialNumber"])
        for built, target in ((told, "raspberry-pi"), (told, "ios"), (bare, "raspberry-pi"))
    ]
    assert len(set(serials)) == 3
    assert {serial.version for serial in serials} == {5}
    assert "timestamp" not in json.dumps(told.document("ios/bom.cdx.json"))

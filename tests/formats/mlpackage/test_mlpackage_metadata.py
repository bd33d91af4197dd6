"""What an `.mlpackage` says of itself: the contract, whole; descriptions for Xcode; the same bytes every time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from torch_programs import Program, conv_program

from calibration.preprocess import Preprocess
from exporter.bundle.contract import contract_document, file_metadata
from exporter.errors import IntegrityError
from exporter.formats.mlpackage import producer as mlpackage
from exporter.formats.mlpackage.metadata import read_metadata, write_metadata
from exporter.system import files

CONTRACT = Preprocess(
    size=(16, 16), color="BGR", fit="crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
).to_dict()
LABELS = ("cat", 'a "quoted" dog', "na\u00efve \u9ce5", "4", "5")
METADATA = file_metadata("tiny", "1.0.0-rc.1", CONTRACT, LABELS)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return conv_program(tmp_path_factory.mktemp("metadata") / "program")


@pytest.fixture(scope="module")
def package(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = program.request("mlpackage:float16", tmp_path_factory.mktemp("made"))
    return mlpackage.produce(dataclasses.replace(request, metadata=METADATA | {"edge.license": "MIT"})).path


def read(package: Path) -> Any:
    """Return the package's protobuf, read by the specification alone."""
    from coremltools.proto import Model_pb2

    return Model_pb2.Model.FromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())


def test_the_package_carries_the_contract_and_describes_its_tensors(
    program: Program, package: Path, tmp_path: Path
) -> None:
    findings = mlpackage.inspect_structure(package, program.path, log=tmp_path / "log")

    assert findings["contract"] == contract_document(CONTRACT, LABELS)
    assert (findings["model"], findings["version"], findings["license"]) == (
        "tiny 1.0.0-rc.1",
        "1.0.0-rc.1",
        "MIT",
    )
    assert findings["descriptions"] == {
        "image": "BGR picture, 16 wide and 16 high (crop, bilinear), as float32 NCHW: "
        "(pixel 0..255 * 0.00392157 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]",
        "scores": 'one score for each of 5 classes: cat, a "quoted" dog, na\u00efve \u9ce5, 4, 5',
    }
    json.dumps(findings, allow_nan=False)


def test_xcode_and_coremltools_find_the_same_texts(package: Path) -> None:
    """What Xcode's model page and `MLModel.modelDescription` show."""
    metadata = read(package).description.metadata
    assert metadata.shortDescription == "tiny, mlpackage:float16"
    assert (metadata.author, metadata.versionString) == ("made with edge-exporter", "1.0.0-rc.1")
    assert dict(metadata.userDefined) == METADATA | {"edge.license": "MIT"}


@pytest.mark.nightly
def test_metadata_leaves_the_bytes_reproducible(
    program: Program, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FRESH_CHILDREN", "1")
    monkeypatch.setitem(mlpackage.CHILD_ENVIRONMENT, "PYTHONHASHSEED", "12345")
    request = program.request("mlpackage:float16", tmp_path / "again")
    turned = dict(reversed((METADATA | {"edge.license": "MIT"}).items()))
    again = mlpackage.produce(dataclasses.replace(request, metadata=turned)).path

    for file in files.sorted_files(package):
        assert file.read_bytes() == (again / file.relative_to(package)).read_bytes()


def test_a_damaged_contract_is_told_and_none_is_no_fault(package: Path) -> None:
    spec = read(package)
    spec.description.metadata.userDefined["edge.contract"] = "{"
    with pytest.raises(IntegrityError, match=r"tiny.mlpackage: edge.contract is no preprocessing contract"):
        read_metadata(spec, "tiny.mlpackage")

    del spec.description.metadata.userDefined["edge.contract"]
    found = read_metadata(spec, "tiny.mlpackage")
    assert (found["model"], found["contract"]) == ("tiny 1.0.0-rc.1", None)


def test_tensors_that_are_no_pictures_are_described_as_such(package: Path) -> None:
    spec = read(package)
    write_metadata(spec, file_metadata("tiny", "1.0.0", {}, ()), "mlpackage:float16")

    found = read_metadata(spec, "tiny.mlpackage")
    assert found["descriptions"] == {"image": "a tensor as it is", "scores": ""}
    assert found["contract"] == {"format": 1, "contract": {"kind": "identity"}, "labels": []}


def test_without_metadata_nothing_that_a_converter_wrote_is_left(package: Path) -> None:
    spec = read(package)
    spec.description.metadata.userDefined["com.github.apple.coremltools.version"] = "9.0"
    write_metadata(spec, {}, "mlpackage:float16")

    assert spec.description.metadata == type(spec.description.metadata)()
    assert set(read_metadata(spec, "tiny.mlpackage")["descriptions"].values()) == {""}

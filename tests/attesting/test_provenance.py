"""Provenance: read by in-toto's own library, true of the bytes it names, and telling of no person and no place."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from attesting_ground import FOLDER, HOST, RECIPE, USER, Built, make_project
from hypothesis import given
from hypothesis import strategies as st

from calibration.sources import open_dataset
from exporter.artifacts import Format, TensorSpec
from exporter.attesting.facts import portable
from exporter.attesting.libraries import makers_of, purl, taking_part
from exporter.attesting.provenance import (
    Provenance,
    as_built,
    parse_provenance,
    read_provenance,
    record_inputs,
)
from exporter.bundle.manifest import check_manifest, read_manifest
from exporter.bundle.measured import attach
from exporter.errors import InputError, IntegrityError
from exporter.recipe.planning import make_plan
from exporter.recipe.recipe import read_recipe


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def dependencies(built: Built) -> dict[str, Any]:
    """Return the digests of what a build was made of, by name."""
    listed = built.document("provenance.json")["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {item["name"]: item["digest"] for item in listed if "name" in item}


# --- what it says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["told", "bare"])
def test_the_library_of_in_toto_reads_it(which: str, request: pytest.FixtureRequest) -> None:
    provenance_pb2 = pytest.importorskip("in_toto_attestation.predicates.provenance.v1.provenance_pb2")
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    built: Built = request.getfixturevalue(which)
    document = built.document("provenance.json")
    statement = Statement.copy_from_pb(json_format.ParseDict(document, statement_pb2.Statement()))
    statement.validate()
    # Strict: a field that SLSA does not know is an error.
    predicate = json_format.ParseDict(document["predicate"], provenance_pb2.Provenance())
    assert statement.pb.predicate_type == "https://slsa.dev/provenance/v1"
    assert predicate.run_details.builder.id == purl("edge-exporter", built.report["tool"]["version"])
    assert predicate.run_details.metadata.started_on.seconds > 1_700_000_000
    assert (
        predicate.run_details.metadata.started_on.seconds
        <= predicate.run_details.metadata.finished_on.seconds
    )
    assert {subject.name for subject in statement.pb.subject} >= set(built.targets)


def test_its_subjects_are_the_bundles_and_every_model_file(told: Built) -> None:
    subjects = read_provenance(told.path / "provenance.json").subjects
    files = [
        path
        for target in told.targets
        for path in (told.path / target / "models").rglob("*")
        if path.is_file()
    ]
    assert subjects == {
        **{target: sha256(told.path / target / "manifest.json") for target in told.targets},
        **{path.relative_to(told.path).as_posix(): sha256(path) for path in files},
    }
    assert len(files) >= 4


def test_it_names_what_the_build_was_made_of(told: Built) -> None:
    project = told.recipe.parent
    inputs = [TensorSpec("image", "float32", ("batch", 1, 8, 8))]
    data = project / "data"
    calibration = open_dataset(
        {"source": "npz", "path": "calibration.npz", "labels": "label"}, root=data, inputs=inputs
    )
    evaluation = open_dataset(
        {"source": "npz", "path": "evaluation.npz", "labels": "label"}, root=data, inputs=inputs
    )
    assert dependencies(told) == {
        "recipe": {"sha256": sha256(told.recipe)},
        "model.factory": {"sha256": sha256(project / "net.py")},
        "data.calibration": {"edge-exporter-dataset-1": calibration.fingerprint},
        "data.evaluation": {"edge-exporter-dataset-1": evaluation.fingerprint},
        "float32.onnx": {"sha256": told.report["model"]["float_sha256"]},
    }


def test_a_model_file_is_named_and_absent_data_is_not(bare: Built) -> None:
    assert dependencies(bare) == {
        "recipe": {"sha256": sha256(bare.recipe)},
        "model.path": {"sha256": sha256(bare.recipe.parent / "float.onnx")},
        "float32.onnx": {"sha256": bare.report["model"]["float_sha256"]},
    }


def test_every_library_is_named_with_the_version_that_is_installed(told: Built) -> None:
    listed = told.document("provenance.json")["predicate"]["buildDefinition"]["resolvedDependencies"]
    libraries = [item["uri"] for item in listed if "uri" in item]
    assert libraries == sorted(set(libraries), key=libraries.index)
    assert purl("torch", importlib.metadata.version("torch")) in libraries
    assert purl("edge-exporter", importlib.metadata.version("edge-exporter")) in libraries
    for uri in libraries:
        name, _, version = uri.removeprefix("pkg:pypi/").partition("@")
        assert purl(name, importlib.metadata.version(name)) == f"pkg:pypi/{name}@{version}"
    assert not any("litert" in uri for uri in libraries), "no .tflite was made"


def test_the_recipe_is_repeated_without_the_places_of_this_machine(told: Built) -> None:
    parameters = told.document("provenance.json")["predicate"]["buildDefinition"]["externalParameters"]
    recipe = parameters["recipe"]
    assert recipe["model"]["factory"] == "net.py:build"
    assert recipe["data"]["calibration"]["path"] == "data/calibration.npz"
    assert recipe["quantize"]["keep"] == ["*first/Conv"]
    assert recipe["model"]["labels"] == ["/", "..", "~", "a|b", "`e`"], "a label is no path"
    assert recipe["model"]["license"] == "Apache-2.0"
    assert parameters["targets"] == ["raspberry-pi", "ios"]
    assert "tune" not in recipe, "a study's storage may hold a password"


def test_what_lies_beside_the_bundles_is_a_byproduct(told: Built) -> None:
    byproducts = told.document("provenance.json")["predicate"]["runDetails"]["byproducts"]
    assert byproducts == [{"name": "report.json", "digest": {"sha256": sha256(told.path / "report.json")}}]
    assert "provenance.json" in read_manifest(told.path)["files"]


@pytest.mark.parametrize("which", ["told", "bare"])
def test_it_tells_of_no_person_and_no_place(which: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(which)
    text = (built.path / "provenance.json").read_text()
    telling = [USER, HOST, FOLDER, socket.gethostname(), tempfile.gettempdir(), str(Path.home())]
    assert [word for word in telling if len(word) > 4 and word in text] == []
    assert re.findall(r'"(?:/|~)[^"]{3,}"', text) == [], "absolute paths"


def test_inputs_are_those_of_the_beginning(tmp_path: Path) -> None:
    from targets.discovery import get_target

    path = make_project(tmp_path / "project", RECIPE.replace('factory = "{folder}/', 'factory = "'))
    recipe = read_recipe(path)
    plan = make_plan(recipe, {name: get_target(name) for name in recipe.targets})
    before = sha256(path), sha256(path.parent / "net.py")
    inputs = record_inputs(plan)
    for edited in (path, path.parent / "net.py"):
        edited.write_text(edited.read_text() + "\n# edited while the build ran\n")
    assert dict(inputs.sha256) == {"recipe": before[0], "model.factory": before[1]}


# --- paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("data/x.npz", "data/x.npz"),
        ("/home/annabelle/project/data/x.npz", "data/x.npz"),
        ("/home/annabelle/elsewhere/x.npz", "x.npz"),
        ("../elsewhere/x.npz", "x.npz"),
        ("data/../x.npz", "x.npz"),
        ("/home/annabelle/project/net.py:build", "net.py:build"),
        ("/srv/nets/net.py:build", "net.py:build"),
        ("package.module:build", "package.module:build"),
        ("label", "label"),
    ],
)
def test_paths_are_told_relative_to_the_recipe(written: str, told: str) -> None:
    assert portable(written, Path("/home/annabelle/project")) == told


@given(
    parts=st.lists(st.sampled_from(["..", ".", "~", "annabelle", "data", "x.npz", ""]), max_size=6),
    absolute=st.booleans(),
)
def test_no_path_tells_of_the_folders_above(parts: list[str], absolute: bool) -> None:
    written = ("/" if absolute else "") + "/".join(parts)
    told = portable(written, Path("/home/somebody/project"))
    assert not told.startswith("/")
    assert ".." not in told.split("/")
    assert "somebody" not in told


# --- libraries -------------------------------------------------------------------------------------------


def test_package_urls_are_spelled_as_the_specification_wants() -> None:
    packageurl = pytest.importorskip("packageurl")
    assert purl("Torch_Pruning.x", "2.13.0+cpu") == "pkg:pypi/torch-pruning-x@2.13.0%2Bcpu"
    parsed = packageurl.PackageURL.from_string(purl("Torch_Pruning.x", "2.13.0+cpu"))
    assert (parsed.type, parsed.name, parsed.version) == ("pypi", "torch-pruning-x", "2.13.0+cpu")


def test_extras_count_only_where_their_format_is_made() -> None:
    plain, tflite = (dict(taking_part(kinds)) for kinds in ([Format.ONNX], [Format.ONNX, Format.TFLITE]))
    assert set(plain) <= set(tflite)
    assert "pydantic-core" in plain, "what is required is followed to what that requires"
    assert "litert-torch" in tflite
    assert makers_of(Format.ONNX, from_torch=False, compressed_by=()).keys() == {
        "edge-exporter", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript",
    }  # fmt: skip
    assert "torch-pruning" in makers_of(Format.MLPACKAGE, from_torch=True, compressed_by=("prune",))


# --- reading it again ------------------------------------------------------------------------------------


@pytest.fixture
def provenance(told: Built) -> Provenance:
    return read_provenance(told.path / "provenance.json")


def test_it_is_about_its_own_bundles(told: Built, provenance: Provenance) -> None:
    for target in told.targets:
        provenance.require_about(told.path / target)
        assert as_built(read_manifest(told.path / target)) == sha256(told.path / target / "manifest.json")


def test_it_is_about_no_other_bundle(
    told: Built, bare: Built, provenance: Provenance, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="is not about") as caught:
        provenance.require_about(bare.path / "raspberry-pi")
    assert caught.value.details["actual"] == sha256(bare.path / "raspberry-pi" / "manifest.json")
    other = read_provenance(bare.path / "provenance.json")
    with pytest.raises(IntegrityError, match="says nothing of a bundle for ios"):
        other.require_about(told.path / "ios")
    with pytest.raises(IntegrityError, match="says nothing of a bundle for no target"):
        provenance.require_about(told.path)
    with pytest.raises(InputError, match="is no bundle"):
        provenance.require_about(tmp_path)


def test_a_bundle_that_was_measured_since_is_still_the_one(
    told: Built, provenance: Provenance, tmp_path: Path
) -> None:
    bundle = tmp_path / "raspberry-pi"
    shutil.copytree(told.path / "raspberry-pi", bundle)
    attach(bundle, "pi5", {"where": "local", "measurements": [], "device": {}})
    assert check_manifest(bundle)
    assert sha256(bundle / "manifest.json") != provenance.subjects["raspberry-pi"]
    provenance.require_about(bundle)


def test_a_bundle_with_another_file_is_not(told: Built, provenance: Provenance, tmp_path: Path) -> None:
    from exporter.bundle.manifest import rewrite_manifest

    bundle = tmp_path / "raspberry-pi"
    shutil.copytree(told.path / "raspberry-pi", bundle)
    (bundle / "README.md").write_text("mine\n")
    rewrite_manifest(bundle)
    assert check_manifest(bundle), "its own manifest is sound: only the provenance can tell"
    with pytest.raises(IntegrityError, match="is not about"):
        provenance.require_about(bundle)


def _changed(document: dict[str, Any], change: str) -> Any:
    changed = copy.deepcopy(document)
    match change:
        case "type":
            changed["_type"] = "https://in-toto.io/Statement/v0.1"
        case "predicate type":
            changed["predicateType"] = "https://slsa.dev/provenance/v0.2"
        case "no subject":
            changed["subject"] = []
        case "twice":
            changed["subject"].append(changed["subject"][0])
        case "digest":
            changed["subject"][0]["digest"]["sha256"] = "abc"
        case "no predicate":
            del changed["predicate"]
        case "list":
            return [changed]
    return changed


@pytest.mark.parametrize(
    "change", ["type", "predicate type", "no subject", "twice", "digest", "no predicate", "list"]
)
def test_what_is_no_provenance_is_refused(told: Built, change: str) -> None:
    content = json.dumps(_changed(told.document("provenance.json"), change)).encode()
    with pytest.raises(IntegrityError, match="is no SLSA provenance"):
        parse_provenance(content, "provenance.json")


@pytest.mark.parametrize("content", [b"", b"\xff", b"null", b"{", b"[" * 100_000, b"{}"])
def test_damaged_provenance_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"provenance\.json is no SLSA provenance"):
        read_provenance(path)


def test_missing_provenance_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*provenance\.json: No such file"):
        read_provenance(tmp_path / "provenance.json")

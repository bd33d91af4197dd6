"""The whole job on real trained models: what ships was run, is accurate, is covered, and can be replayed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from build_ground import ROOT, Built, build, edge_export
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.preprocess import Preprocess
from exporter.bundle.manifest import check_manifest
from exporter.errors import IntegrityError
from exporter.jobs.replay import replay_bundle

RUNTIME_OF = {"onnx": "onnxruntime-cpu", "ort": "onnxruntime-cpu", "tflite": "litert-xnnpack"}


class _Quiet:
    """Progress that says nothing."""

    def step(self, name: str, total: int | None = None) -> Any:
        import contextlib

        return contextlib.nullcontext(lambda done: None)

    def say(self, line: str) -> None:
        """Drop `line`."""


# --- what was measured -----------------------------------------------------------------------------------


def test_every_artifact_was_run_or_says_why_not(built: Built) -> None:
    for artifact in built.report["artifacts"]:
        evidence, kind = artifact["evidence"], artifact["artifact"].partition(":")[0]
        if kind == "mlpackage":
            assert evidence["runtime"] is None
            assert "Apple" in evidence["not_run"]
            assert evidence["structure"]
        else:
            assert evidence["runtime"] == RUNTIME_OF[kind], artifact["artifact"]
            assert re.match(r"\d+\.\d+", evidence["runtime_version"])
            assert evidence["not_run"] is None
            assert evidence["fidelity"]["samples"] >= 500


def test_no_artifact_loses_more_than_half_a_point(built: Built) -> None:
    judged = [item for item in built.report["artifacts"] if item["evidence"]["task"]]
    assert len(judged) >= 2
    for artifact in judged:
        task = artifact["evidence"]["task"]
        assert task["reference"] > 0.95, "the demo models are trained"
        assert task["drop_points"] == pytest.approx(100 * (task["reference"] - task["value"]))
        assert task["drop_points"] <= 0.5, artifact["artifact"]


def test_static_int8_covers_the_multiplications(built: Built) -> None:
    static = [item for item in built.report["artifacts"] if ":static_" in item["artifact"]]
    assert static
    for artifact in static:
        coverage = artifact["coverage"]
        assert coverage["mac_share"] >= 0.95, artifact["artifact"]
        left = sum(coverage["left_float"].values())
        assert coverage["quantized"] + left == coverage["operators"] == len(coverage["layers"])
        assert all(layer["quantized"] or layer["reason"] for layer in coverage["layers"])


def test_quantised_files_are_smaller_than_the_float_model(built: Built) -> None:
    for artifact in built.report["artifacts"]:
        assert artifact["times_smaller"] == pytest.approx(
            built.report["model"]["float_bytes"] / artifact["size_bytes"]
        )
        if "float32" not in artifact["artifact"]:
            assert artifact["times_smaller"] > 1.3, artifact["artifact"]


def test_every_gate_of_a_published_build_passed(built: Built) -> None:
    gates = built.report["gates"]
    assert {gate["artifact"] for gate in gates} == {item["artifact"] for item in built.report["artifacts"]}
    assert all(gate["passed"] for gate in gates)


def test_the_report_on_disk_is_the_one_answered(built: Built) -> None:
    assert json.loads((built.path / "report.json").read_text()) == built.report


# --- bundles ---------------------------------------------------------------------------------------------


def test_manifests_list_every_file_of_the_build(built: Built) -> None:
    assert check_manifest(built.path) > 0
    for target in built.targets:
        assert check_manifest(built.path / target) > 0
    files = {path.name for path in built.path.iterdir()}
    assert {*built.targets, "report.json", "manifest.json"} <= files


def test_bundles_hold_what_the_report_promises(built: Built) -> None:
    from exporter.system.files import digest

    for artifact in built.report["artifacts"]:
        for target in artifact["targets"]:
            assert digest(built.path / target / "models" / artifact["file"]) == artifact["sha256"]


def test_validate_passes_for_every_bundle(built: Built, tmp_path: Path) -> None:
    for target in built.targets:
        result = edge_export("validate", built.path / target, "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["passed"] is True
        assert {item["artifact"] for item in answer["artifacts"]} == {
            item["artifact"] for item in built.report["artifacts"] if target in item["targets"]
        }
        for item in answer["artifacts"]:
            assert item["passed"] is (None if item["artifact"].startswith("mlpackage") else True)


def carried_by(path: Path) -> dict[str, str]:
    """Return the texts that a file carries, as readers find them that are not ours."""
    if path.suffix == ".onnx":
        return {item.key: item.value for item in onnx.load(path).metadata_props}
    if path.suffix == ".ort":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)
    if path.suffix == ".mlpackage":
        from coremltools.proto import Model_pb2

        (file,) = path.rglob("*.mlmodel")
        return dict(Model_pb2.Model.FromString(file.read_bytes()).description.metadata.userDefined)
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    entries = [model.Metadata(number) for number in range(model.MetadataLength())]
    return {
        entry.Name().decode(): bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode(errors="replace")
        for entry in entries
    }


def test_every_file_carries_the_contract_of_its_bundle(cnn: Built) -> None:
    told = set()
    for target in cnn.targets:
        document = json.loads((cnn.path / target / "preprocess.json").read_text())
        assert (document["contract"]["kind"], len(document["labels"])) == ("image", 10)
        for path in sorted((cnn.path / target / "models").glob("*.*")):
            if path.suffix != ".config":
                carried = carried_by(path)
                assert json.loads(carried["edge.contract"]) == document, path.name
                assert carried["edge.model"] == "digits-cnn 1.0.0"
                told.add(path.suffix)
    assert told == {".onnx", ".ort", ".tflite", ".mlpackage"}


def test_golden_tensors_are_what_the_contract_makes_of_their_pictures(cnn: Built) -> None:
    for target in cnn.targets:
        folder = cnn.path / target
        contract = Preprocess.from_dict(json.loads((folder / "preprocess.json").read_text())["contract"])
        golden = json.loads((folder / "golden" / "golden.json").read_text())
        assert golden["reveals"] == ["range", "scaled-twice"]
        for sample in golden["samples"]:
            with Image.open(folder / "golden" / sample["raw"]["image"]) as picture:
                made = contract.apply(picture)
            assert (made == np.load(folder / "golden" / sample["inputs"]["image"])).all()


@pytest.fixture(scope="module")
def victims(cnn: Built) -> list[Path]:
    """Return every file of every bundle of the convolutional demo."""
    return [
        path for target in cnn.targets for path in sorted((cnn.path / target).rglob("*")) if path.is_file()
    ]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150, phases=[Phase.generate]
)  # fmt: skip
@given(data=st.data())
def test_any_flipped_byte_of_any_bundle_is_named(
    cnn: Built, victims: list[Path], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(victims))
    sound = path.read_bytes()
    if not sound:
        return
    place, flip = data.draw(st.integers(0, len(sound) - 1)), data.draw(st.integers(1, 255))
    bundle = cnn.path / path.relative_to(cnn.path).parts[0]
    path.write_bytes(sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :])
    try:
        with pytest.raises(IntegrityError, match=re.escape(path.name)):
            replay_bundle(bundle, progress=_Quiet())
    finally:
        path.write_bytes(sound)


def test_validate_of_a_flipped_bundle_exits_19(cnn: Built, tmp_path: Path) -> None:
    path = cnn.path / "raspberry-pi" / "golden" / "golden.json"
    sound = path.read_bytes()
    path.write_bytes(sound[:-2] + b" \n")
    try:
        result = edge_export("validate", cnn.path / "raspberry-pi", "--json", cwd=tmp_path)
    finally:
        path.write_bytes(sound)
    assert result.returncode == 19
    assert result.stderr.splitlines()[-1].startswith("error[E-integrity]: ")
    assert "golden.json" in result.stderr
    assert json.loads(result.stdout)["error"]["code"] == "E-integrity"


def test_the_pi_bundle_replays_itself_without_us(cnn: Built, tmp_path: Path) -> None:
    bundle = cnn.path / "raspberry-pi"
    result = subprocess.run(
        [sys.executable, "-I", str(bundle / "run.py"), "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)
    assert check_manifest(bundle), "running it must not change it"


# --- the report's description ----------------------------------------------------------------------------


def _keys(value: Any, path: str, free: set[str]) -> Iterator[str]:
    if path in free:
        for item in value.values() if isinstance(value, dict) else []:
            if isinstance(item, dict) and f"{path}.*" in free:
                yield from _keys(item, f"{path}.*", free - {f"{path}.*"})
            else:
                yield f"{path}.*"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _keys(item, f"{path}.{key}" if path else key, free)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item, f"{path}[]", free)
    else:
        yield path


def _documented(heading: str) -> set[str]:
    """Return the keys in the first column of the tables between `heading` and the next of its kind."""
    text = (ROOT / "docs" / "report.md").read_text()
    section = text.partition(heading)[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def test_docs_describe_every_key_of_a_report_and_no_other(cnn: Built) -> None:
    documented = _documented("# report.json")
    free = {key.partition(".*")[0] for key in documented if ".*" in key} | {"targets.*"}
    present = set(_keys(cnn.report, "", free))
    # Where a whole object is absent its own key shows up instead of its parts.
    optional = {key for key in present if any(other.startswith(f"{key}.") for other in documented)}
    assert present - optional - documented == set(), "docs/report.md lacks these"
    may_be_empty = ("refused[]", "findings[]", "artifacts[].notes[]")
    lacking = {key for key in documented - present if not key.startswith(may_be_empty)}
    assert lacking == set(), "docs/report.md promises these, and no report has them"


def test_docs_describe_every_key_of_a_replay(cnn: Built) -> None:
    documented = _documented("## What a replay answers")
    answer = replay_bundle(cnn.path / "raspberry-pi", progress=_Quiet())
    assert set(_keys(answer, "", set())) == documented


# --- repetition ------------------------------------------------------------------------------------------


@pytest.mark.nightly  # tests/attesting/test_no_leaks.py does so with a small network in the quick run
def test_a_second_build_elsewhere_gives_the_same_bytes(cnn: Built, tmp_path: Path) -> None:
    """Another folder, time zone, locale, hash seed, user and umask: every file of every bundle, `.ort` included."""
    other = {"TZ": "Pacific/Chatham", "LC_ALL": "C", "PYTHONHASHSEED": "4242", "USER": "somebody"}
    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    before = os.umask(0o077)
    try:
        again = build(["demo"], elsewhere, **other)
    finally:
        os.umask(before)
    for target in cnn.targets:
        assert contents(again.path / target) == contents(cnn.path / target), target


def test_no_bundle_tells_where_by_whom_or_on_what_it_was_built(cnn: Built) -> None:
    told = {str(cnn.path.parents[2]), str(Path.home()), socket.gethostname(), tempfile.gettempdir()}
    # Names this short are words as well: a user called "pi" is no leak.
    telling = [name.encode() for name in told if len(name) > 4]
    assert telling
    for target in cnn.targets:
        for name, content in contents(cnn.path / target).items():
            assert [text for text in telling if text in content] == [], f"{target}/{name}"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of `folder` by its path within."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }

"""A build from a folder of pictures: its golden vectors start from them, its files say how, replay names mistakes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from report_ground import reported

from calibration.preprocess import Preprocess
from exporter.bundle.contract import CONTRACT_KEY, MODEL_KEY
from exporter.bundle.manifest import rewrite_manifest
from exporter.bundle.mistakes import SINGLE_CODES
from exporter.cli import main
from exporter.errors import EdgeError, GateError, IntegrityError
from exporter.jobs.replay import replay_bundle
from exporter.system.files import write_json

RECIPE = """
[model]
name = "net"
version = "1.2.0"
path = "net.onnx"

[data]
calibration = { source = "images", path = "pictures", samples = 12 }
evaluation = { source = "images", path = "pictures", labels = "folder" }
preprocess={ layout = "NHWC", color = "BGR", size = [8, 10], fit = "crop", mean = [0.4, 0.45, 0.5], std = [0.2, 0.3, 0.4] }

[gates]
min_sqnr_db = 5

[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8"]
"""


class Quiet:
    """Progress that says nothing."""

    def step(self, name: str, total: int | None = None) -> Any:
        return contextlib.nullcontext(lambda done: None)

    def say(self, line: str) -> None:
        """Drop `line`."""


def write_net(path: Path) -> None:
    """Write `image` [batch, 8, 10, 3] → NCHW → convolution → mean → two scores."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.5, (4, 3, 3, 3)).astype(np.float32)
    head = random.normal(0, 1, (4, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["nchw", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("MatMul", ["f", "h"], ["scores"], name="head"),
        ],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 10, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(head, "h")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def run_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    folder.mkdir(parents=True, exist_ok=True)
    write_net(folder / "net.onnx")
    for number in range(16):
        home = folder / "pictures" / ("warm" if number % 2 else "cold")
        home.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), np.uint8)
        Image.fromarray(pixels).save(home / f"{number:02d}.{'png' if number % 4 else 'jpg'}")
    (folder / "recipe.toml").write_text(RECIPE)
    arguments = ["build", str(folder / "recipe.toml"), "--out", str(folder / "out"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    return reported(json.loads(result.stdout))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        report = run_build(folder, patch)
    return folder / "out" / "net" / "1.2.0" / "raspberry-pi", report


@pytest.fixture
def bundle(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "bundle"))


def golden_of(bundle: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((bundle / "golden" / "golden.json").read_text())
    return document


def test_every_golden_tensor_is_what_the_contract_makes_of_its_picture(bundle: Path) -> None:
    contract = Preprocess.from_dict(json.loads((bundle / "preprocess.json").read_text())["contract"])
    golden = golden_of(bundle)
    assert golden["reveals"] == [*SINGLE_CODES, "resize"]
    assert len(golden["samples"]) == 4
    for number, sample in enumerate(golden["samples"]):
        assert sample["raw"] == {"image": f"{number}/raw.image.png"}
        with Image.open(bundle / "golden" / sample["raw"]["image"]) as picture:
            assert (picture.mode, picture.size) == ("RGB", (20, 24))
            made = contract.apply(picture)
        np.testing.assert_array_equal(made, np.load(bundle / "golden" / sample["inputs"]["image"]))


def test_recorded_answers_are_those_of_exactly_these_tensors(bundle: Path) -> None:
    golden = golden_of(bundle)
    write_net(bundle.parent / "net.onnx")
    float_model = ReferenceEvaluator(str(bundle.parent / "net.onnx"))
    (limits,) = golden["tolerance"].values()
    for sample in golden["samples"]:
        tensor = np.load(bundle / "golden" / sample["inputs"]["image"])
        (wanted,) = float_model.run(None, {"image": tensor})
        recorded = np.load(bundle / "golden" / sample["reference"]["scores"])
        np.testing.assert_allclose(recorded, wanted, atol=1e-4)
        own = np.load(bundle / "golden" / sample["outputs"]["net-static_wi8_ai8.onnx"]["scores"])
        assert np.abs(own - recorded).max() <= limits["max_abs_reference"] / 2


def test_the_file_carries_what_the_bundle_says(bundle: Path) -> None:
    model = onnx.load(bundle / "models" / "net-static_wi8_ai8.onnx")
    carried = {item.key: item.value for item in model.metadata_props}
    document = json.loads((bundle / "preprocess.json").read_text())
    assert set(carried) == {CONTRACT_KEY, MODEL_KEY}
    assert json.loads(carried[CONTRACT_KEY]) == document
    assert document["labels"] == ["cold", "warm"]
    assert carried[MODEL_KEY] == "net 1.2.0"


def test_nothing_is_found_odd(built: tuple[Path, dict[str, Any]]) -> None:
    assert [line for line in built[1]["findings"] if "golden" in line] == []


def test_a_second_build_gives_the_same_bytes(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_build(tmp_path / "again", monkeypatch)
    again = tmp_path / "again" / "out" / "net" / "1.2.0" / "raspberry-pi"
    for path in sorted(built[0].rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(built[0])).read_bytes(), path.name


# --- replay ----------------------------------------------------------------------------------------------


def test_replay_starts_from_the_pictures(bundle: Path) -> None:
    result = replay_bundle(bundle, progress=Quiet())
    assert result["passed"] is True
    assert result["preprocessing"] == {
        "samples": 4,
        "passed": True,
        "cause": None,
        "says": "4 pictures were prepared as in calibration",
    }
    shown = CliRunner().invoke(main, ["validate", str(bundle)])
    assert "4 pictures were prepared as in calibration" in shown.stdout
    shown = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert "BGR picture, 10 wide and 8 high (crop, bilinear)" in " ".join(shown.stdout.split())


def change_contract(bundle: Path, **changes: Any) -> None:
    document = json.loads((bundle / "preprocess.json").read_text())
    document["contract"] |= changes
    write_json(bundle / "preprocess.json", document)
    rewrite_manifest(bundle)


# What the bundle says is changed, so the mistake is the golden tensors': the names are those of the way back.
@pytest.mark.parametrize(
    ("changes", "cause", "says"),
    [
        ({"color": "RGB"}, "color", "channels are in the order BGR instead of RGB"),
        ({"fit": "stretch"}, "resize", "another resize, fit or orientation than bilinear/stretch"),
        ({"resize": "nearest"}, "resize", "another resize, fit or orientation than nearest/crop"),
        ({"scale": 1.0}, "resize", "grey levels at most"),
    ],
)
def test_a_picture_that_is_prepared_otherwise_is_named_before_anything_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], cause: str, says: str
) -> None:
    change_contract(bundle, **changes)
    monkeypatch.setattr("exporter.jobs.replay.run_artifact", lambda *_, **__: pytest.fail("a model was run"))
    with pytest.raises(GateError) as caught:
        replay_bundle(bundle, progress=Quiet())
    assert caught.value.details["preprocessing"]["cause"] == cause
    assert caught.value.details["preprocessing"]["samples"] == 4
    assert caught.value.details["passed"] is False
    assert says in caught.value.cause
    assert "0/raw.image.png" in caught.value.cause
    assert "golden picture is not prepared as in the build" in caught.value.cause


def test_a_picture_with_swapped_colours_is_named(bundle: Path) -> None:
    path = bundle / "golden" / "2" / "raw.image.png"
    with Image.open(path) as picture:
        swapped = np.asarray(picture)[:, :, ::-1]
    Image.fromarray(np.ascontiguousarray(swapped)).save(path)
    rewrite_manifest(bundle)
    with pytest.raises(GateError, match=r"2/raw\.image\.png: channels are in the order RGB instead of BGR"):
        replay_bundle(bundle, progress=Quiet())


def _identity(bundle: Path) -> None:
    write_json(bundle / "preprocess.json", {"format": 1, "contract": {"kind": "identity"}, "labels": []})


def _no_document(bundle: Path) -> None:
    (bundle / "preprocess.json").unlink()


def _impossible(bundle: Path) -> None:
    document = json.loads((bundle / "preprocess.json").read_text())
    write_json(bundle / "preprocess.json", {**document, "contract": {**document["contract"], "scale": 0.0}})


def _other_size(bundle: Path) -> None:
    document = json.loads((bundle / "preprocess.json").read_text())
    write_json(bundle / "preprocess.json", {**document, "contract": {**document["contract"], "size": [8, 8]}})


def _other_input(bundle: Path) -> None:
    golden = golden_of(bundle)
    golden["samples"][0]["raw"] = {"other": "0/raw.image.png"}
    write_json(bundle / "golden" / "golden.json", golden)


def _elsewhere(bundle: Path) -> None:
    golden = golden_of(bundle)
    golden["samples"][0]["raw"] = {"image": "../../raw.image.png"}
    write_json(bundle / "golden" / "golden.json", golden)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_identity, r"preprocess\.json is no contract of pictures"),
        (_no_document, r"preprocess\.json is no preprocessing contract"),
        (_impossible, r"preprocess\.json is no contract of pictures: preprocess\.scale is 0"),
        (_other_size, r"has shape \(1, 8, 10, 3\), and the contract makes \(1, 8, 8, 3\)"),
        (_other_input, "a picture and no tensor of input 'other'"),
        (_elsewhere, "outside its folder"),
    ],
)
def test_documents_that_do_not_belong_together_are_refused(
    bundle: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(bundle)
    rewrite_manifest(bundle)
    with pytest.raises(EdgeError, match=message) as caught:
        replay_bundle(bundle, progress=Quiet())
    assert isinstance(caught.value, IntegrityError)


def test_a_bundle_without_pictures_is_replayed_from_its_tensors(bundle: Path) -> None:
    golden = golden_of(bundle)
    for sample in golden["samples"]:
        del sample["raw"]
    write_json(bundle / "golden" / "golden.json", golden)
    rewrite_manifest(bundle)
    result = replay_bundle(bundle, progress=Quiet())
    assert (result["passed"], result["preprocessing"]) == (True, None)

"""What the built-in targets write into a bundle: the README's figures, the contracts, the traps."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest

from exporter.artifacts import Latency
from targets.base import BundleRequest, Target
from targets.conformance import PLAIN_CARD, RICH_CARD, sample_request
from targets.discovery import BUILT_IN, get_target


def bundle(name: str, folder: Path, *, options: dict[str, Any] | None = None, **changes: Any) -> Path:
    target = get_target(name)
    chosen = target.options_model.model_validate(options or {})
    request = sample_request(target, folder / name, options=chosen, card=changes.pop("card", RICH_CARD))
    target.bundle(dataclasses.replace(request, **changes))
    return request.destination


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_readme_gives_each_file_its_measured_figures_in_the_order_of_the_request(tmp_path: Path) -> None:
    text = readme(bundle("android", tmp_path))

    rows = [line for line in text.splitlines() if line.startswith("| `models/")]
    assert rows[0] == (
        "| `models/3d.sample-net-static_wi8_ai8-fixed.onnx` | onnxruntime-cpu, onnxruntime-xnnpack | 0.000 MB "
        "| 31.2 dB | 99.5 % | top1 0.9850 (float 0.9900) | +0.50 points |"
    )
    assert [row.split("`")[1].rsplit(".", 1)[1] for row in rows] == ["onnx", "ort", "tflite", "tflite"]


def test_readme_says_what_was_not_measured_instead_of_inventing_it(tmp_path: Path) -> None:
    text = readme(bundle("ios", tmp_path))

    row = next(line for line in text.splitlines() if line.startswith("| `models/3d.sample-net-float16"))
    assert row.endswith("| – | – | – | – |")
    assert "- measured: not run in the build: Core ML runs on Apple's systems only" in text


def test_host_latency_stays_out_of_the_documents(tmp_path: Path) -> None:
    target = get_target("raspberry-pi")
    request = sample_request(target, tmp_path / "bundle")
    measured = tuple(
        dataclasses.replace(
            item,
            evidence=dataclasses.replace(
                item.evidence, latency=Latency(1.2345, 2.3456, 10, 1, "builder-host")
            ),
        )
        for item in request.deliveries
    )
    target.bundle(dataclasses.replace(request, deliveries=measured))

    for name in ("README.md", "models.json", "preprocess.json"):
        text = (request.destination / name).read_text(encoding="utf-8")
        assert "builder-host" not in text
        assert "1.2345" not in text


@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        ("android", ['noCompress += listOf("onnx", "ort")', "opset 21", "NNAPI", "16 KB", "never int8"]),
        ("ios", ["iOS 17", "compileModel", "ML Program format", "CocoaPods", "opset 21"]),
        ("raspberry-pi", ["get_throttled", "64-bit", "Cortex-A76", "int8 is the fast form"]),
    ],
)
def test_readme_warns_of_the_platforms_traps(name: str, sentences: list[str], tmp_path: Path) -> None:
    text = readme(bundle(name, tmp_path))

    assert [sentence for sentence in sentences if sentence not in text] == []


def test_readme_warns_only_of_what_is_in_the_bundle(tmp_path: Path) -> None:
    target = get_target("android")
    request = sample_request(target, tmp_path / "bundle")
    target.bundle(dataclasses.replace(request, deliveries=request.deliveries[2:3]))

    text = readme(request.destination)
    assert "noCompress" not in text
    assert "GPU delegate takes float files only" in text


@pytest.mark.parametrize(("board", "loses"), [("zero2w", True), ("pi3", True), ("pi4", True), ("pi5", False)])
def test_readme_says_on_which_boards_int8_may_lose(board: str, loses: bool, tmp_path: Path) -> None:
    text = readme(bundle("raspberry-pi", tmp_path, options={"board": board}))

    assert ("int8 may lose to float" in text) is loses


def test_models_document_describes_every_file(tmp_path: Path) -> None:
    folder = bundle("raspberry-pi", tmp_path)

    document = json.loads((folder / "models.json").read_text(encoding="utf-8"))
    assert document["format"] == 1
    assert document["model"] == {"name": "3d.sample-net", "version": "1.2.3-rc.1"}
    first = document["models"][0]
    assert first["file"] == "3d.sample-net-static_wi8_ai8.onnx"
    assert first["artifact"] == "onnx:static_wi8_ai8"
    assert first["runtimes"] == ["onnxruntime-cpu"]
    assert first["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 4, 4]}]
    assert first["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]
    assert (first["size_bytes"], len(first["sha256"])) == (32, 64)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_preprocess_document_is_the_contract_and_the_labels(name: str, tmp_path: Path) -> None:
    document = json.loads((bundle(name, tmp_path) / "preprocess.json").read_text(encoding="utf-8"))

    assert document["format"] == 1
    assert document["contract"] == dict(RICH_CARD.preprocess)
    assert document["labels"] == ["tench", 'a "quoted" $label', "naïve"]


@pytest.mark.parametrize("contract", [{}, {"kind": "identity"}, types.MappingProxyType({"kind": "identity"})])
def test_a_model_without_preprocessing_says_so(contract: dict[str, Any], tmp_path: Path) -> None:
    folder = bundle("raspberry-pi", tmp_path, card=dataclasses.replace(PLAIN_CARD, preprocess=contract))

    document = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    assert document == {"format": 1, "contract": {"kind": "identity"}, "labels": []}
    assert "takes tensors as they are" in readme(folder)
    assert (folder / "requirements.txt").read_text() == "numpy\nonnxruntime\nai-edge-litert\n"


def test_pi_requirements_name_what_the_bundle_needs(tmp_path: Path) -> None:
    target: Target = get_target("raspberry-pi")
    request: BundleRequest = sample_request(target, tmp_path / "bundle")
    target.bundle(dataclasses.replace(request, deliveries=request.deliveries[:1]))

    assert (request.destination / "requirements.txt").read_text() == "numpy\nonnxruntime\npillow\n"

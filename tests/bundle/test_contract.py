"""The contract that files carry: one spelling, read back whole, and refused when it is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.preprocess import Preprocess, describe_preprocess
from exporter.bundle.contract import (
    CONTRACT_KEY,
    MODEL_KEY,
    contract_document,
    describe_contract,
    file_metadata,
    parse_contract,
    read_contract,
)
from exporter.errors import IntegrityError, UnsupportedError
from exporter.system.files import write_json

IMAGE = Preprocess(size=(5, 7), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).to_dict()
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(texts), st.sampled_from([IMAGE, {"kind": "identity"}, {}]))
def test_what_is_written_is_read_and_is_the_document_of_the_bundle(
    labels: list[str], contract: dict[str, Any]
) -> None:
    metadata = file_metadata("net", "1.0.0", contract, labels)
    assert metadata[MODEL_KEY] == "net 1.0.0"
    assert "\n" not in metadata[CONTRACT_KEY]
    carried = parse_contract(metadata[CONTRACT_KEY], "here")
    assert carried.contract == (contract or {"kind": "identity"})
    assert carried.labels == tuple(labels)
    document = contract_document(contract, labels)
    assert json.loads(metadata[CONTRACT_KEY]) == json.loads(json.dumps(document))


def test_the_spelling_is_one_line_of_sorted_keys() -> None:
    assert file_metadata("net", "1.0.0", {}, ["naïve bird", "cat"])[CONTRACT_KEY] == (
        '{"contract":{"kind":"identity"},"format":1,"labels":["naïve bird","cat"]}'
    )


def test_a_bundle_is_read_by_the_same_rule(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocess.json", contract_document(IMAGE, ["a"]))
    carried = read_contract(tmp_path)
    assert carried.is_image
    assert carried.image_shape == Preprocess.from_dict(IMAGE).shape == (1, 3, 5, 7)
    (tmp_path / "preprocess.json").unlink()
    with pytest.raises(IntegrityError, match=r"preprocess\.json is no preprocessing contract"):
        read_contract(tmp_path)


def test_channels_last_contracts_give_channels_last_shapes() -> None:
    contract = Preprocess(size=(5, 7), layout="NHWC", color="L")
    text = file_metadata("net", "1.0.0", describe_preprocess(contract), [])[CONTRACT_KEY]
    assert parse_contract(text, "here").image_shape == contract.shape == (1, 5, 7, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"format":1,"contract":{"kind":"identity"}}',
        '{"format":1,"contract":null,"labels":[]}',
        '{"format":1,"contract":{},"labels":[]}',
        '{"format":1,"contract":{"kind":3},"labels":[]}',
        '{"format":1,"contract":{"kind":"identity"},"labels":[1]}',
        '{"format":1,"contract":{"kind":"image"},"labels":[]}',
        json.dumps({"format": 1, "contract": {**IMAGE, "mean": [0.0]}, "labels": []}),
        json.dumps({"format": 1, "contract": {**IMAGE, "size": [5]}, "labels": []}),
        json.dumps({"format": 1, "contract": {**IMAGE, "scale": "1/255"}, "labels": []}),
        json.dumps({"format": 1, "contract": {**IMAGE, "color": None}, "labels": []}),
    ],
)
def test_what_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match=r"net\.onnx is no preprocessing contract"):
        parse_contract(text, "net.onnx")


def test_a_later_format_is_not_guessed_at() -> None:
    with pytest.raises(UnsupportedError, match="has format 2; this tool reads 1"):
        parse_contract('{"format":2,"contract":{},"labels":[]}', "net.onnx")


def test_people_are_told_what_is_done_to_a_picture() -> None:
    assert describe_contract(IMAGE) == (
        "RGB picture, 7 wide and 5 high (stretch, bilinear), as float32 NCHW: "
        "(pixel 0..255 * 0.00392157 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]"
    )
    assert describe_contract(Preprocess(size=(2, 2), color="L", fit="crop").to_dict()) == (
        "grey picture, 2 wide and 2 high (crop, bilinear), as float32 NCHW: (pixel 0..255 * 0.00392157 - 0) / 1"
    )
    assert describe_contract({"kind": "identity"}) == "tensors as they are"


def test_a_licence_travels_where_there_is_one() -> None:
    assert "edge.license" not in file_metadata("net", "1.0.0", {}, ())
    assert file_metadata("net", "1.0.0", {}, (), "Apache-2.0")["edge.license"] == "Apache-2.0"

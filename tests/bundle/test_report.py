"""A report: its layout is the schema's and that of reports written before, and nothing else is taken for one."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from report_ground import reported, validator

from exporter.artifacts import ArtifactSpec, Coverage, Drop, Evidence, GateResult, TaskScore
from exporter.bundle.report import (
    CoverageEntry,
    EvidenceEntry,
    GateEntry,
    TargetEntry,
    read_report,
    write_report,
)
from exporter.errors import IntegrityError

GOLDEN = Path(__file__).parents[1] / "goldens" / "report.json"
FREE = {"libraries", "axes", "settings", "details", "structure", "left_float", "seconds"}
"""Keys of objects whose own keys are names of the build."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """The report of a compressed model with a budget, as the version before `exporter.bundle.report` wrote it."""
    document: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return document


def test_a_report_written_before_reads_and_is_written_back_to_the_byte(tmp_path: Path) -> None:
    report = read_report(GOLDEN)
    write_report(tmp_path, report)
    assert (tmp_path / "report.json").read_bytes() == GOLDEN.read_bytes()
    assert report.compression is not None
    assert [step.method for step in report.compression.steps] == ["prune", "distill"]
    assert [(item.format, item.scheme) for item in report.artifacts][1] == ("ort", "float32@fixed")


def test_keys_have_one_order() -> None:
    keys = [
        *("schema", "tool", "libraries", "model", "compression", "recovery", "data"),
        *("artifacts", "refused", "gates", "findings", "targets", "seconds"),
    ]
    assert list(read_report(GOLDEN).document()) == keys


def test_compression_is_no_key_of_a_build_that_does_not_compress(
    golden: dict[str, Any], tmp_path: Path
) -> None:
    bare = {key: value for key, value in golden.items() if key != "compression"}
    reported({"report": golden})
    (tmp_path / "report.json").write_text(json.dumps(bare))
    assert read_report(tmp_path / "report.json").document() == reported({"report": bare})
    assert not validator().is_valid({**bare, "compression": None})


Place = tuple[str | int, ...]


def _objects(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield where the objects of a report lie whose keys are the layout's; of a list, the first alone."""
    if isinstance(value, list):
        yield from _objects(value[0], (*place, 0)) if value else ()
    elif isinstance(value, dict):
        if place != ("targets",):
            yield place
        for key, item in value.items():
            if key not in FREE:
                yield from _objects(item, (*place, key))


OBJECTS = tuple(_objects(json.loads(GOLDEN.read_text(encoding="utf-8"))))


def test_all_kinds_of_objects_are_tried_below() -> None:
    assert len(OBJECTS) > 30
    assert {("targets", "ios"), ("recovery", 0, "rungs", 0, "drop"), ("gates", 0)} < set(OBJECTS)


@pytest.mark.parametrize("place", OBJECTS, ids=lambda place: ".".join(map(str, place)) or "report")
def test_the_schema_and_the_reader_refuse_a_key_more_or_less(
    golden: dict[str, Any], place: Place, tmp_path: Path
) -> None:
    where = "".join(f"{part}." for part in place)

    def refused(spoil: Callable[[dict[str, Any]], object], says: str) -> None:
        spoilt = copy.deepcopy(golden)
        spoil(functools.reduce(lambda value, part: value[part], place, spoilt))
        assert not validator().is_valid(spoilt)
        (tmp_path / "report.json").write_text(json.dumps(spoilt))
        with pytest.raises(IntegrityError) as caught:
            read_report(tmp_path / "report.json")
        assert f"report.json is damaged: {where}{says}" in str(caught.value)

    refused(lambda entry: entry.update(heard="never"), "heard: no key of a report")
    present = functools.reduce(lambda value, part: value[part], place, golden)
    lacking = "name" if "name" in present else next(key for key in present if key != "compression")
    refused(lambda entry: entry.pop(lacking), f"{lacking}: Field required")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged: Invalid JSON"),
        (b"\xff\xfe{}", "is damaged: Invalid JSON"),
        (b'{"schema": 1}', "is damaged: tool: Field required"),
        (b'{"schema": "1"}', "is damaged: schema: Input should be 1"),
        (b"[]", "is damaged"),
        (b'{"schema": 2, "stages": {}}', "has layout 2; this tool reads 1; fix: update edge-exporter"),
    ],
)
def test_what_is_no_report_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        read_report(tmp_path / "report.json")
    assert f"{tmp_path / 'report.json'} {says}" in str(caught.value)


def test_numbers_are_numbers(golden: dict[str, Any], tmp_path: Path) -> None:
    spoilt = copy.deepcopy(golden)
    spoilt["model"]["macs"] = "25700"
    (tmp_path / "report.json").write_text(json.dumps(spoilt))
    with pytest.raises(IntegrityError, match=r"model\.macs: Input should be a valid integer"):
        read_report(tmp_path / "report.json")


SPEC = ArtifactSpec.parse("onnx:static_wi8_ai8@fixed")


def test_nouns_are_told_with_what_follows_from_them() -> None:
    drop = Drop(0.5, -0.1, 1.1, 200)
    told = EvidenceEntry.of(Evidence(SPEC, task=TaskScore("top1", 0.99, 0.985, drop), disagreement=drop))
    assert told.artifact == "onnx:static_wi8_ai8@fixed"
    assert told.task is not None and told.task.interval == told.disagreement
    assert told.task.drop_points == pytest.approx(0.5)
    assert told.disagreement is not None and told.disagreement.is_noise
    assert CoverageEntry.of(Coverage(())) == CoverageEntry(0, 0, 0.0, 0.0, {}, ())


def test_a_noun_that_says_more_than_the_layout_is_our_bug() -> None:
    gate = GateResult(SPEC, "min_sqnr_db", 15.0, 30.0, True, "dB")
    assert GateEntry.of(gate).artifact == str(SPEC)
    with pytest.raises(ValidationError, match="Unexpected keyword argument"):
        TargetEntry.of({"folder": "ios", "more": 1})

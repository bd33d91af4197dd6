"""What ships tells of no machine, person or hour, and is the same wherever the same recipe is built."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path

import pytest
from attesting_ground import FOLDER, HOST, ROOT, USER, Built, build, contents, make_project

DOCUMENTS = {"bom.cdx.json", "MODEL_CARD.md"}


def shipped(built: Built) -> dict[str, bytes]:
    """Return every file of every bundle."""
    return {
        f"{target}/{name}": content
        for target in built.targets
        for name, content in contents(built.path / target).items()
    }


@pytest.mark.parametrize("which", ["told", "bare"])
def test_no_shipped_byte_tells_of_person_host_or_folder(which: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(which)
    told = {USER, HOST, FOLDER, socket.gethostname(), tempfile.gettempdir(), str(Path.home()), str(ROOT)}
    # Names this short are words as well: a user called "pi" is no leak.
    telling = [name.encode() for name in told if len(name) > 4]
    assert len(telling) >= 5
    for name, content in shipped(built).items():
        assert [text for text in telling if text in content] == [], name


@pytest.mark.parametrize("which", ["told", "bare"])
def test_no_shipped_document_tells_an_hour_or_an_absolute_path(
    which: str, request: pytest.FixtureRequest
) -> None:
    built: Built = request.getfixturevalue(which)
    started = built.document("provenance.json")["predicate"]["runDetails"]["metadata"]["startedOn"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", started), "the hour stands here and nowhere else"
    for name, content in shipped(built).items():
        assert started[:10].encode() not in content, name
        if name.endswith((".json", ".md")):
            assert re.findall(rb'["`](/[A-Za-z][^"`]+)["`]', content) == [], name


def test_documents_are_in_every_bundle_and_in_its_manifest(told: Built) -> None:
    from exporter.bundle.manifest import check_manifest, read_manifest

    for target in told.targets:
        assert check_manifest(told.path / target)
        assert set(read_manifest(told.path / target)["files"]) >= DOCUMENTS


def test_a_build_elsewhere_gives_the_same_bytes(told: Built, tmp_path: Path) -> None:
    """Another folder (whose path the recipe spells out), time zone, locale, hash seed, user and umask."""
    recipe = make_project(tmp_path / "another folder")
    assert recipe.read_text() != told.recipe.read_text()
    before = os.umask(0o077)
    try:
        again = build(
            recipe, tmp_path / "out", TZ="Pacific/Chatham", LC_ALL="C", PYTHONHASHSEED="4242", USER="somebody"
        )
    finally:
        os.umask(before)
    assert shipped(again) == shipped(told)

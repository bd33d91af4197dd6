"""Manifests: any change to any byte of a bundle is found, in the manifest itself too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.bundle.manifest import check_manifest, read_manifest, write_manifest
from exporter.errors import InputError, IntegrityError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a small bundle with a manifest."""
    folder = tmp_path / "bundle"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "a.onnx").write_bytes(bytes(range(50)))
    (folder / "README.md").write_text("read me\n")
    write_manifest(folder, {"name": "x", "version": "1.0.0", "note": "größe"})
    return folder


def test_a_sound_bundle_passes(bundle: Path) -> None:
    assert check_manifest(bundle) == 2
    assert read_manifest(bundle)["note"] == "größe"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_any_file_is_found(bundle: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["models/a.onnx", "README.md", "manifest.json"]))
    path = bundle / name
    sound = path.read_bytes()
    place = data.draw(st.integers(0, len(sound) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :])
    try:
        with pytest.raises(IntegrityError, match=name):
            check_manifest(bundle)
    finally:
        path.write_bytes(sound)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keep=st.integers(0, 400), more=st.binary(max_size=4))
def test_a_manifest_cut_short_or_made_longer_is_found(bundle: Path, keep: int, more: bytes) -> None:
    path = bundle / "manifest.json"
    sound = path.read_bytes()
    changed = sound[:keep] + more
    if changed != sound:
        path.write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            check_manifest(bundle)
        path.write_bytes(sound)


@pytest.mark.parametrize("how", ["missing", "added", "linked", "folder linked", "emptied"])
def test_files_that_come_go_or_turn_into_links_are_named(bundle: Path, how: str) -> None:
    path = bundle / "models" / "a.onnx"
    match how:
        case "missing":
            path.unlink()
        case "added":
            path = bundle / "models" / "extra"
            path.touch()
        case "linked":
            path.rename(bundle.parent / "real")
            path.symlink_to(bundle.parent / "real")
        case "folder linked":
            shutil.move(bundle / "models", bundle.parent / "real")
            (bundle / "models").symlink_to(bundle.parent / "real")
            path = bundle / "models"
        case "emptied":
            path.write_bytes(b"")
    with pytest.raises(IntegrityError, match=str(path)):
        check_manifest(bundle)


@pytest.mark.parametrize("content", ["[]", "{}", '"x"', "null", "3", '{"format": 1}', "[" * 100_000])
def test_other_json_is_a_damaged_manifest(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(IntegrityError, match="damaged"):
        read_manifest(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no bundle"):
        read_manifest(tmp_path)


def test_the_manifest_does_not_depend_on_where_the_bundle_lies(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "elsewhere")
    write_manifest(copy, {"note": "größe", "version": "1.0.0", "name": "x"})
    assert (copy / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
    assert set(json.loads((copy / "manifest.json").read_text())["files"]) == {"models/a.onnx", "README.md"}

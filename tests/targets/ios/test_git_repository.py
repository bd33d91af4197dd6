"""Repositories as plain files: real git clones them, from a folder and over HTTP, and finds nothing wrong."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ios_ground import needs_git, serve

from exporter.errors import UnsupportedError
from targets.ios.git_repository import commit_of, object_path, references, require_tag

FIRST = {
    "Package.swift": b"// 1\n",
    "Sources/A/a.swift": b"let a = 1\n",
    "Sources/A/model.bin": bytes(range(256)) * 1024,
}
# Git sorts `a/` behind `a.b` and `a-c`, where plain names would go the other way.
SECOND = FIRST | {
    "Package.swift": b"// 2\n",
    "a.b": b"",
    "a-c": b"\n",
    "a/b/c": b"deep",
    "\u00e9 \u4e16": b"name",
}


def git(*arguments: object, folder: Path) -> str:
    ran = subprocess.run(
        ["git", *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def write_all(files: Mapping[str, bytes], folder: Path) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def repository(folder: Path) -> Path:
    """Two versions side by side, the newer a prerelease."""
    first, second = commit_of(FIRST, "digits 1.0.0"), commit_of(SECOND, "digits 1.1.0-rc.1+b.7")
    tags = {"1.0.0": first.name, "1.1.0-rc.1+b.7": second.name}
    return write_all({**first.objects, **second.objects, **references(tags, "1.0.0")}, folder / "digits.git")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


@needs_git
@pytest.mark.parametrize("is_served", [False, True], ids=["folder", "http"])
def test_git_mirrors_checks_out_and_finds_nothing_wrong(is_served: bool, tmp_path: Path) -> None:
    made = repository(tmp_path)
    with serve(tmp_path) as served:
        url = f"{served}/digits.git" if is_served else made.as_uri()
        git("clone", "--quiet", "--mirror", url, "mirror", folder=tmp_path)
        git("clone", "--quiet", url, "checkout", folder=tmp_path)
    mirror, checkout = tmp_path / "mirror", tmp_path / "checkout"

    assert git("fsck", "--strict", "--full", folder=mirror) == ""
    assert git("tag", "--list", folder=mirror).split() == ["1.0.0", "1.1.0-rc.1+b.7"]
    assert git("symbolic-ref", "HEAD", folder=mirror) == "refs/heads/main\n"
    assert contents(checkout) == FIRST
    git("checkout", "--quiet", "1.1.0-rc.1+b.7", folder=checkout)
    assert contents(checkout) == SECOND
    shown = git("log", "-1", "--format=%an|%ad|%s|%P", "--date=iso", folder=checkout)
    assert shown == "edge-exporter|1980-01-01 00:00:00 +0000|digits 1.1.0-rc.1+b.7|\n"


@needs_git
def test_a_bare_repository_passes_git_s_own_check_where_it_lies(tmp_path: Path) -> None:
    made = repository(tmp_path)

    assert git("fsck", "--strict", "--full", folder=made) == ""
    assert git("rev-parse", "--is-bare-repository", folder=made) == "true\n"
    assert git("for-each-ref", "--format=%(refname)", folder=made).split() == [
        "refs/heads/main",
        "refs/tags/1.0.0",
        "refs/tags/1.1.0-rc.1+b.7",
    ]


@needs_git
def test_a_flipped_bit_is_refused_by_git(tmp_path: Path) -> None:
    made = repository(tmp_path)
    largest = max(
        (made / "objects").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)

    with serve(tmp_path) as served:
        command = ["git", "clone", "--quiet", f"{served}/digits.git", "checkout"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode != 0


def test_objects_are_stored_zlib_streams_named_by_their_content() -> None:
    commit = commit_of(SECOND, "x")

    for path, content in commit.objects.items():
        raw = zlib.decompress(content)
        assert object_path(hashlib.sha1(raw, usedforsecurity=False).hexdigest()) == path
        assert len(content) >= len(raw)  # no compression, hence no zlib whose version could show
    assert list(commit.objects)[-1] == object_path(commit.name)


def test_equal_files_are_an_equal_commit_in_any_order() -> None:
    turned = dict(reversed(SECOND.items()))

    assert commit_of(turned, "x") == commit_of(SECOND, "x")
    # Pinned: another name for the same files would be another revision in every app's Package.resolved.
    assert commit_of(FIRST, "digits 1.0.0").name == "0652416335baf73188384d34f676912032a1f9c3"


NAMES = st.text(st.sampled_from("abz.-_0 \u00e9"), min_size=1, max_size=4).filter(
    lambda name: name not in {".", ".."}
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    paths = draw(st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6))
    folders = {path[:place] for path in paths for place, letter in enumerate(path) if letter == "/"}
    return {path: draw(st.binary(max_size=70)) for path in paths if path not in folders}


@needs_git
@settings(deadline=None, max_examples=10)
@given(trees())
def test_git_gives_any_tree_the_same_name(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(files, folder / "tree")
        git("init", "--quiet", folder=folder)
        git("--work-tree=tree", "add", "--all", folder=folder)
        wanted = git("write-tree", folder=folder).strip()
    commit = commit_of(files, "x")
    told = zlib.decompress(commit.objects[object_path(commit.name)])
    assert told.partition(b"\0")[2].split(b"\n")[0] == f"tree {wanted}".encode()


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/./b", ".git/config", "a/.GIT/b", "a\0b"])
def test_paths_that_no_checkout_holds_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no path inside a git repository"):
        commit_of({path: b""}, "x")


def test_a_file_in_the_place_of_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="'a/b' lies in a file"):
        commit_of({"a/b": b"", "a": b"", "a.b": b""}, "x")


@pytest.mark.parametrize("version", ["1.0.0", "1.0.0-rc.1", "2.0.0-a-b.3+build.1", "1.0.0--"])
@needs_git
def test_versions_are_tags(version: str, tmp_path: Path) -> None:
    assert require_tag(version) == f"refs/tags/{version}"
    git("check-ref-format", f"refs/tags/{version}", folder=tmp_path)


@pytest.mark.parametrize("version", ["1.0.0-rc.lock", "1.0.0-a..b", "1.0.0~1", "1.0.0 "])
def test_versions_that_git_has_no_tag_for_are_refused(version: str) -> None:
    with pytest.raises(UnsupportedError, match="git allows no tag"):
        require_tag(version)

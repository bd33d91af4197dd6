"""Files that are whole or absent, whatever call fails on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import BusyError, InputError, ResourceError
from exporter.system import files
from exporter.system.files import (
    appear_at_once,
    digest,
    hold_lock,
    require_file,
    scratch_folder,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).resolve().parents[2]


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# --- digests ---------------------------------------------------------------------------------------------


@given(content=st.binary(max_size=4096))
def test_the_digest_of_a_file_is_its_sha256(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "digested"
    path.write_bytes(content)
    assert digest(path) == hashlib.sha256(content).hexdigest()


trees = st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e", "f/g/h"]), st.binary(max_size=8))


@given(first=trees, second=trees)
def test_the_digest_of_a_folder_tells_trees_apart(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    digests = []
    for entries in (first, second):
        folder = tmp_path_factory.getbasetemp() / "tree"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in entries.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        digests.append(digest(folder))
    assert (digests[0] == digests[1]) == (first == second)


# --- atomic writes ---------------------------------------------------------------------------------------

CALLS = ["open", "write", "fsync", "replace"]


@pytest.fixture(params=[errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=["full", "io", "quota"])
def fault(request: pytest.FixtureRequest) -> OSError:
    """Return the error of a full or failing disk."""
    number: int = request.param
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("call", CALLS)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError, call: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_given: object, **_named: object) -> object:
        raise fault

    where = {"open": (files.tempfile, "mkstemp"), "write": (files.os, "fdopen"), "fsync": (files.os, "fsync")}
    owner, name = where.get(call, (Path, "replace"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(ResourceError, match="MB free on its disk"):
            write_bytes(path, b"new")
    assert _tree(tmp_path) == {"file": b"old"}


def test_json_is_canonical_and_refuses_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_bytes() == '{\n  "a": "é",\n  "b": 1\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert _tree(tmp_path).keys() == {"x.json"}


# --- folders that appear at once -------------------------------------------------------------------------


def _build(destination: Path, text: str) -> None:
    with appear_at_once(destination) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "file").write_text(text)


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path: Path) -> None:
    destination = tmp_path / "1.0.0"
    for text in ("first", "second"):
        _build(destination, text)
        assert _tree(tmp_path) == {"1.0.0/inner/file": text.encode()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    _build(tmp_path / "x", "old")
    with pytest.raises(error), appear_at_once(tmp_path / "x") as staging:
        (staging / "half").touch()
        raise error
    assert _tree(tmp_path) == {"x/inner/file": b"old"}


def _failing(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, nth: int, fault: OSError
) -> Callable[[], int]:
    """Make the `nth` call of `owner.name` fail; return a function that says how many calls there were."""
    plain, calls = getattr(owner, name), [0]

    def sometimes(*given: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == nth:
            raise fault
        return plain(*given, **named)

    monkeypatch.setattr(owner, name, sometimes)
    return lambda: calls[0]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(files.tempfile, "mkdtemp"), (Path, "chmod"), (files.os, "open"), (files.os, "fsync"), (Path, "mkdir")],
)
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_any_call_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError, owner: object, name: str, nth: int
) -> None:
    destination = tmp_path / "x"
    _build(destination, "old")
    with monkeypatch.context() as patch:
        made = _failing(patch, owner, name, nth, fault)
        try:
            _build(destination, "new")
        except ResourceError as error:
            assert "MB free" in error.cause
        swapped = made() < nth or (destination / "inner" / "file").read_text() == "new"
    assert _tree(tmp_path) == {"x/inner/file": b"new" if swapped else b"old"}


def test_without_an_atomic_exchange_the_old_tree_survives_a_death_in_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "x"
    _build(destination, "old")

    class Death(BaseException):
        """Stands for SIGKILL: nothing after it runs."""

    plain, calls = Path.rename, [0]

    def dying(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == 2:
            raise Death
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda *_: False)
        patch.setattr(Path, "rename", dying)
        patch.setattr(files.shutil, "rmtree", lambda *_given, **_named: None)
        with pytest.raises(Death):
            _build(destination, "new")
    assert not destination.exists(), "the gap this test is about"
    with pytest.raises(RuntimeError), appear_at_once(destination):
        raise RuntimeError
    assert _tree(tmp_path) == {"x/inner/file": b"old"}


def test_without_an_atomic_exchange_folders_are_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        _build(tmp_path / "x", text)
    assert _tree(tmp_path) == {"x/inner/file": b"new"}


def test_leftovers_of_the_same_folder_are_removed_and_of_others_are_not(tmp_path: Path) -> None:
    mine, other = tmp_path / ".edge-staging-1.0.0@abc", tmp_path / ".edge-staging-1.0.0-rc.1@abc"
    for folder in (mine, other):
        folder.mkdir()
    _build(tmp_path / "1.0.0", "x")
    assert other.exists()
    assert not mine.exists()


# --- locks -----------------------------------------------------------------------------------------------


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path / "lock", what="the folder"),
        pytest.raises(BusyError, match=f"the folder is being written by process {os.getpid()}"),
        hold_lock(tmp_path / "lock", what="the folder"),
    ):
        pytest.fail("two holders")
    with hold_lock(tmp_path / "lock", what="the folder"):
        pass


def test_a_lock_whose_file_was_removed_by_its_holder_excludes_nobody_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A opens the file, its holder B removes it and lets go, A locks what has no name: C must still meet A."""
    path = tmp_path / "lock"
    path.touch()
    plain = files.fcntl.flock
    removed: list[int] = []

    def flock(stream: object, how: int) -> None:
        if not removed:
            removed.append(1)
            path.unlink()
        plain(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with hold_lock(path, what="x"), pytest.raises(BusyError), hold_lock(path, what="x"):
        pytest.fail("two holders")


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    script = "import os, sys\nfrom pathlib import Path\nfrom exporter.system.files import hold_lock\n"
    script += "with hold_lock(Path(sys.argv[1]), what='x'): os.kill(os.getpid(), 9)\n"
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "lock")], cwd=ROOT, check=False)
    assert result.returncode == -9
    with hold_lock(tmp_path / "lock", what="x"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


# --- scratch ---------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a system temporary folder of this test's own."""
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    yield tmp_path


def test_scratch_is_empty_and_gone_afterwards(temporary: Path) -> None:
    with scratch_folder("test") as folder:
        assert not list(folder.iterdir())
        (folder / "x").touch()
        with scratch_folder("test") as second:
            assert second != folder
        assert (folder / "x").exists()
    assert not list(temporary.iterdir())


def test_scratch_of_the_dead_is_removed_and_of_the_living_is_not(temporary: Path) -> None:
    dead = temporary / "edge-test-dead"
    (dead / "scratch").mkdir(parents=True)
    (dead / "lock").touch()
    unnamed = temporary / "edge-test-in-the-making"
    unnamed.mkdir()
    with scratch_folder("test"):
        assert not dead.exists()
        assert unnamed.exists()


# --- require_file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "missing", "folder", "empty", "x" * 400, "a/b/c", "file/inside"])
def test_what_is_no_readable_file_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="the thing"):
        require_file(tmp_path / name, what="the thing")

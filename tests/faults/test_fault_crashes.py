"""Death, interruption, full disks and rivals: an older build survives, a rerun completes, nothing stays behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ground import Ground, Running, require_failure, run, snapshot

STAGES = [
    "loading the model",
    "reading data",
    "exporting to ONNX",
    "checking the export against torch",
    "calibrating",
    "making artifacts",
    "validating",
    "writing bundles",
]


def _artifacts(ground: Ground) -> dict[str, str]:
    models = ground.out / "tiny" / "1.0.0" / "raspberry-pi" / "models"
    return snapshot(models)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def _children(pid: int) -> list[int]:
    """Return the living processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _start(ground: Ground, scratch: Path, *, stage: str = "", act: str = "") -> Running:
    return Running(
        "build", ground.recipe, "--out", ground.out, "--json",
        streams=scratch.parent, scratch=scratch, stage=stage, act=act,
    )  # fmt: skip


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Return an empty folder to serve as the system's temporary folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


# --- interruption ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [stage if stage == "validating" else pytest.param(stage, marks=pytest.mark.nightly) for stage in STAGES],
)
def test_ctrl_c_in_any_stage_leaves_nothing(ground: Ground, scratch: Path, stage: str) -> None:
    before = snapshot(ground.out)
    act = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    failure = require_failure(*_start(ground, scratch, stage=stage, act=act).end())
    assert (failure.exit_code, failure.code) == (130, "E-interrupted")
    assert "build" in failure.fix
    assert snapshot(ground.out) == before
    assert not list(scratch.glob("edge-*"))


def test_ctrl_c_while_a_child_works_ends_the_child(ground: Ground, scratch: Path) -> None:
    before = snapshot(ground.out)
    running = _start(ground, scratch)
    children = _await_children(running)
    os.kill(running.pid, signal.SIGINT)
    assert require_failure(*running.end()).code == "E-interrupted"
    _await_ends(children)
    assert snapshot(ground.out) == before
    assert not list(scratch.glob("edge-*"))


def _await_children(running: Running) -> list[int]:
    """Return handles of the build's first child at work and, if that is the fork of a warm server, of the server.

    Waits for them to appear; the last one is the child that does the work.
    """
    pause = threading.Event()
    while not running.is_over:
        for child in _children(running.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if b"exporter.system.isolation" in words:
                    at_work = [child, *_children(child)[:1]]
                    if b"job" in words or len(at_work) == 2:
                        return [os.pidfd_open(process) for process in at_work]
        pause.wait(0.002)
    raise AssertionError(f"the build ended before a child of its was at work: {running.end()}")


def _await_ends(handles: list[int]) -> None:
    for handle in handles:
        with contextlib.closing(os.fdopen(handle)):
            assert select.select([handle], [], [], 60)[0], "a child outlived the build"


# --- death -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("exporting to ONNX", marks=pytest.mark.nightly),
        "making artifacts",
        pytest.param("writing bundles", marks=pytest.mark.nightly),
    ],
)
def test_a_killed_build_is_completed_by_the_next(ground: Ground, scratch: Path, stage: str) -> None:
    before, models = snapshot(ground.out / "tiny" / "1.0.0"), _artifacts(ground)
    expected = _names(ground.out)
    act = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert _start(ground, scratch, stage=stage, act=act).end()[0] == -signal.SIGKILL
    assert snapshot(ground.out / "tiny" / "1.0.0") == before, "the older build must survive a kill"
    ground.succeeds()
    assert _artifacts(ground) == models
    assert _names(ground.out) == expected, "leftovers of the killed build"


def test_a_build_killed_while_its_child_works_takes_the_child_along(ground: Ground, scratch: Path) -> None:
    running = _start(ground, scratch)
    children = _await_children(running)
    os.kill(running.pid, signal.SIGKILL)
    assert running.end()[0] == -signal.SIGKILL
    _await_ends(children)
    assert _start(ground, scratch).end()[0] == 0
    assert not list(scratch.glob("edge-*")), "what the killed build left behind"


# Kills the build at the n-th file operation in its folder; prints how many there were if it never comes to that.
KILL_AT = """
import atexit, os, signal, sys
seen = 0
def watch(event, arguments):
    global seen
    if event in {{"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}} and "/out/" in str(arguments[0]):
        seen += 1
        if seen == {limit}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from exporter.cli.terminal import boundary
plain = boundary.run_guarded
import exporter.cli
def counted(*given):
    status = plain(*given)
    print(seen, file=sys.stderr)
    return status
exporter.cli.run_guarded = counted
"""


@pytest.mark.nightly
def test_a_build_killed_at_any_write_is_completed_by_the_next(ground: Ground, scratch: Path) -> None:
    code, _, stderr = _start(ground, scratch, act=KILL_AT.format(limit=-1)).end()
    assert code == 0, stderr
    operations = int(stderr.splitlines()[-1])
    assert operations > 50
    models, before = _artifacts(ground), snapshot(ground.out)
    for share in (0.1, 0.5, 0.8, 0.97):
        act = KILL_AT.format(limit=int(operations * share))
        assert _start(ground, scratch, act=act).end()[0] == -signal.SIGKILL
        after = snapshot(ground.out)
        assert before.items() <= after.items(), "the older build must survive a kill"
    ground.succeeds()
    assert _artifacts(ground) == models
    assert set(snapshot(ground.out)) == set(before), "leftovers of the killed builds"


@pytest.mark.parametrize(
    ("how", "exit_code", "said"),
    [
        ("SIGSEGV", 70, "SIGSEGV"),
        pytest.param("SIGKILL", 15, "SIGKILL", marks=pytest.mark.nightly),
        pytest.param("SIGABRT", 70, "SIGABRT", marks=pytest.mark.nightly),
    ],
)
def test_a_runtime_that_dies_is_named_with_file_and_signal(
    ground: Ground, scratch: Path, how: str, exit_code: int, said: str
) -> None:
    before = snapshot(ground.out)
    # A fork of a warm process may be done before it is hit: a new interpreter takes a second to start.
    running = _start(ground, scratch, act="import os; os.environ['EDGE_FRESH_CHILDREN'] = '1'")
    (child,) = _await_children(running)
    signal.pidfd_send_signal(child, signal.Signals[how])
    os.close(child)
    failure = require_failure(*running.end())
    assert failure.exit_code == exit_code
    assert f"running of float32.onnx {'was killed' if exit_code == 15 else 'died of'}" in failure.cause
    assert said in failure.cause
    assert snapshot(ground.out) == before


# --- rivals ----------------------------------------------------------------------------------------------


def test_a_second_build_into_one_folder_is_told_who_holds_it(ground: Ground) -> None:
    lock = ground.out / "tiny" / ".1.0.0.lock"
    with lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        holder.write("process 4242\n")
        holder.flush()
        ground.fails(17, str(ground.out / "tiny" / "1.0.0"), "process 4242")
    ground.succeeds()
    assert not lock.exists()


def test_two_builds_at_once_end_in_one_winner(ground: Ground, scratch: Path) -> None:
    models = _artifacts(ground)
    streams = [scratch / "first", scratch / "second"]
    for folder in streams:
        folder.mkdir()
    arguments = ["build", ground.recipe, "--out", ground.out]
    rivals = [Running(*arguments, streams=folder, scratch=scratch) for folder in streams]
    ends = [rival.end() for rival in rivals]
    assert sorted(code for code, _, _ in ends) in ([0, 0], [0, 17]), ends
    assert _artifacts(ground) == models
    assert not [name for name in _names(ground.out) if name.startswith(".")]


def test_a_build_of_a_prerelease_does_not_disturb_its_release(ground: Ground) -> None:
    from exporter.system.files import appear_at_once

    with appear_at_once(ground.out / "tiny" / "1.0.0-rc.1") as staging:
        (staging / "kept").write_text("here")
        ground.succeeds()
        assert (staging / "kept").read_text() == "here"


# --- disks -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB, or skip where that is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_with_figures(ground: Ground, small_disk: Path, scratch: Path) -> None:
    before = snapshot(ground.out)
    running = Running("build", ground.recipe, "--out", small_disk, "--json", streams=scratch, scratch=scratch)
    failure = require_failure(*running.end())
    assert failure.exit_code == 15
    assert str(small_disk) in failure.cause
    assert "MB free" in failure.cause
    assert not list(small_disk.rglob("*"))
    assert snapshot(ground.out) == before


@pytest.mark.parametrize(
    "kilobytes",
    [pytest.param(1, marks=pytest.mark.nightly), 4, pytest.param(7, marks=pytest.mark.nightly)],
)
def test_a_limit_on_file_size_at_any_point_is_a_resource_error(
    ground: Ground, scratch: Path, kilobytes: int
) -> None:
    """RLIMIT_FSIZE fails the first write past it, which is another one for each limit."""
    before = snapshot(ground.out)
    act = (
        "import resource, signal as s; s.signal(s.SIGXFSZ, s.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes * 1000}, resource.RLIM_INFINITY))"
    )
    code, _, stderr = _start(ground, scratch, stage="exporting to ONNX", act=act).end()
    assert code == 15, stderr
    assert "error[E-resource]" in stderr
    assert snapshot(ground.out) == before


def test_an_out_that_cannot_be_written_is_told_before_the_work(ground: Ground) -> None:
    (ground.folder / "file").touch()
    code, stdout, stderr = run(
        "build", ground.recipe, "--out", ground.folder / "file" / "x", "--json", cwd=ground.folder
    )
    assert require_failure(code, stdout, stderr).exit_code == 2

"""Death, interruption, full disks and rivals: an older build survives, a rerun completes, nothing stays behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_ground import ROOT, Ground, require_failure, run, snapshot, start

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

# Runs the command line, and does `act` when the build's progress enters the stage that argv names.
AT_STAGE = """
import os, signal, sys
from exporter.cli import bars, main
stage, act = sys.argv[1], sys.argv[2]
plain = bars.Lines.step
def step(self, name, total=None):
    if name == stage:
        exec(act)
    return plain(self, name, total)
bars.Lines.step = step
main(sys.argv[3:])
"""


def _artifacts(ground: Ground) -> dict[str, str]:
    models = ground.out / "tiny" / "1.0.0" / "raspberry-pi" / "models"
    return snapshot(models)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def _session_members(session: int) -> list[int]:
    """Return the processes of a session that are still alive."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _children(pid: int) -> list[int]:
    """Return the living processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _at_stage(ground: Ground, stage: str, act: str, tmp: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AT_STAGE, stage, act, "build", str(ground.recipe), "--out", str(ground.out), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp)},
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Return an empty folder to serve as the system's temporary folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


# --- interruption ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_any_stage_leaves_nothing(ground: Ground, scratch: Path, stage: str) -> None:
    before = snapshot(ground.out)
    result = _at_stage(ground, stage, "os.kill(os.getpid(), signal.SIGINT)", scratch)
    failure = require_failure(result.returncode, result.stdout, result.stderr)
    assert (failure.exit_code, failure.code) == (130, "E-interrupted")
    assert "build" in failure.fix
    assert snapshot(ground.out) == before
    assert not list(scratch.glob("edge-*"))


def test_ctrl_c_while_a_child_works_ends_the_child(ground: Ground, scratch: Path) -> None:
    before = snapshot(ground.out)
    process = start("build", ground.recipe, "--out", ground.out, cwd=ground.folder, TMPDIR=str(scratch))
    child = _await_child(process)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error[E-interrupted]" in stderr
    assert not Path(f"/proc/{child}").exists()
    assert snapshot(ground.out) == before
    assert not list(scratch.glob("edge-*"))


def _await_child(process: subprocess.Popen[str]) -> int:
    """Return the first child of `process` that runs one of our functions, waiting for it to appear."""
    pause = threading.Event()
    while process.poll() is None:
        for child in _children(process.pid):
            with contextlib.suppress(OSError):
                if b"exporter.isolation" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        pause.wait(0.002)
    raise AssertionError(f"the build ended before it had a child: {process.communicate()}")


# --- death -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["exporting to ONNX", "making artifacts", "writing bundles"])
def test_a_killed_build_is_completed_by_the_next(ground: Ground, scratch: Path, stage: str) -> None:
    before, models = snapshot(ground.out / "tiny" / "1.0.0"), _artifacts(ground)
    expected = _names(ground.out)
    result = _at_stage(ground, stage, "os.kill(os.getpid(), signal.SIGKILL)", scratch)
    assert result.returncode == -signal.SIGKILL
    assert snapshot(ground.out / "tiny" / "1.0.0") == before, "the older build must survive a kill"
    ground.succeeds()
    assert _artifacts(ground) == models
    assert _names(ground.out) == expected, "leftovers of the killed build"


def test_a_build_killed_while_its_child_works_takes_the_child_along(ground: Ground, scratch: Path) -> None:
    process = start("build", ground.recipe, "--out", ground.out, cwd=ground.folder, TMPDIR=str(scratch))
    child = _await_child(process)
    with open(f"/proc/{child}/stat"):  # noqa: PTH123 - it lives
        process.kill()
    process.communicate(timeout=60)
    handle = _pidfd(child)
    if handle is not None:
        with contextlib.closing(os.fdopen(handle)):
            import select

            assert select.select([handle], [], [], 30)[0], "the child outlived its parent"
    assert not _session_members(process.pid)
    assert run("build", ground.recipe, "--out", ground.out, cwd=ground.folder, TMPDIR=str(scratch))[0] == 0
    assert not list(scratch.glob("edge-*")), "what the killed build left behind"


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize("at", [0.25, 0.5, 0.75])
def test_a_build_killed_at_any_write_is_completed_by_the_next(
    ground: Ground, scratch: Path, at: float
) -> None:
    """Kills at a fixed share of all audited file operations: the moments at which a half-written file can exist."""
    script = textwrap.dedent("""
        import os, signal, sys
        from exporter.cli import main
        limit, seen = int(sys.argv[1]), 0
        def watch(event, arguments):
            global seen
            if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"} and "/out/" in str(arguments[0]):
                seen += 1
                if seen == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        try:
            main(sys.argv[2:])
        finally:
            print(seen, file=sys.stderr)
    """)
    arguments = ["build", str(ground.recipe), "--out", str(ground.out)]

    def go(limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(limit), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    models, before = _artifacts(ground), snapshot(ground.out / "tiny" / "1.0.0")
    operations = _operations(go)
    assert operations > 50
    killed = go(int(operations * at))
    assert killed.returncode == -signal.SIGKILL
    assert snapshot(ground.out / "tiny" / "1.0.0") == before
    expected = _names(ground.out / "tiny" / "1.0.0") | {"tiny", "1.0.0"}
    ground.succeeds()
    assert _artifacts(ground) == models
    assert _names(ground.out) == expected


_counted: list[int] = []


def _operations(go: object) -> int:
    """Return how many file operations an undisturbed build makes in its folder; counted once."""
    if not _counted:
        result = go(-1)  # type: ignore[operator]
        assert result.returncode == 0, result.stderr
        _counted.append(int(result.stderr.splitlines()[-1]))
    return _counted[0]


@pytest.mark.parametrize(
    ("how", "exit_code", "said"),
    [("SIGKILL", 15, "SIGKILL"), ("SIGSEGV", 70, "SIGSEGV"), ("SIGABRT", 70, "SIGABRT")],
)
def test_a_runtime_that_dies_is_named_with_file_and_signal(
    ground: Ground, scratch: Path, how: str, exit_code: int, said: str
) -> None:
    before = snapshot(ground.out)
    process = start(
        "build", ground.recipe, "--out", ground.out, "--json", cwd=ground.folder, TMPDIR=str(scratch)
    )
    os.kill(_await_child(process), signal.Signals[how])
    stdout, stderr = process.communicate(timeout=60)
    failure = require_failure(process.returncode, stdout, stderr)
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


def test_two_builds_at_once_end_in_one_winner(ground: Ground) -> None:
    models = _artifacts(ground)
    rivals = [start("build", ground.recipe, "--out", ground.out, cwd=ground.folder) for _ in range(2)]
    told = [rival.communicate(timeout=120)[1] for rival in rivals]
    codes = sorted(rival.returncode for rival in rivals)
    assert codes in ([0, 0], [0, 17]), told
    assert _artifacts(ground) == models
    assert not [name for name in _names(ground.out) if name.startswith(".")]


def test_a_build_of_a_prerelease_does_not_disturb_its_release(ground: Ground) -> None:
    from exporter.files import appear_at_once

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


def test_a_full_disk_is_told_with_figures(ground: Ground, small_disk: Path) -> None:
    before = snapshot(ground.out)
    code, stdout, stderr = run(
        "build", ground.recipe, "--out", small_disk, "--json", cwd=ground.folder
    )
    failure = require_failure(code, stdout, stderr)
    assert failure.exit_code == 15
    assert str(small_disk) in failure.cause
    assert "MB free" in failure.cause
    assert not list(small_disk.rglob("*"))
    assert snapshot(ground.out) == before


@pytest.mark.parametrize("kilobytes", [1, 2, 4, 6, 8, 10])
def test_a_limit_on_file_size_at_any_point_is_a_resource_error(
    ground: Ground, scratch: Path, kilobytes: int
) -> None:
    """RLIMIT_FSIZE fails the first write past it, which is another one for each limit."""
    before = snapshot(ground.out)
    act = (
        "import resource, signal as s; s.signal(s.SIGXFSZ, s.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes * 1000}, resource.RLIM_INFINITY))"
    )
    result = _at_stage(ground, "exporting to ONNX", act, scratch)
    if result.returncode == 0:
        assert kilobytes == 10, "no write was past the limit"
        return
    answer = json.loads(result.stdout or '{"error": {"exit_code": null}}')
    assert result.returncode == 15, (result.stderr, answer)
    assert snapshot(ground.out) == before


def test_an_out_that_cannot_be_written_is_told_before_the_work(ground: Ground) -> None:
    (ground.folder / "file").touch()
    code, stdout, stderr = run(
        "build", ground.recipe, "--out", ground.folder / "file" / "x", "--json", cwd=ground.folder
    )
    assert require_failure(code, stdout, stderr).exit_code == 2

"""A child process takes its noise, its memory and its death with it, and its errors come back as they were.

Whether it is a new interpreter or a fork of a warm one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.errors import CalibrationError, InternalError, ResourceError, TimeLimitError
from exporter.system.isolation import IsolatedResult, call_isolated

Call = Callable[..., IsolatedResult]


@pytest.fixture(params=["fresh", "warm"])
def call(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Return a function that calls one of `isolated_functions` in a child."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    preload = ("numpy",) if request.param == "warm" else ()

    def run(name: str, timeout_s: float | None = 60, **request: object) -> IsolatedResult:
        return call_isolated(
            f"isolated_functions:{name}",
            request,
            stage="converting",
            subject="net.tflite",
            log=tmp_path / "child.log",
            timeout_s=timeout_s,
            preload=preload,
        )

    yield run
    assert b"in a fresh interpreter" not in (tmp_path / "child.log").read_bytes()
    assert not list((tmp_path / "scratch").iterdir()), "scratch of a child was left behind"


def test_a_result_comes_back_with_time_and_memory(call: Call) -> None:
    result = call("answer", text="é\n\x1b[31m", number=1.5)
    assert result.value == {"echo": {"text": "é\n\x1b[31m", "number": 1.5}}
    assert result.seconds > 0
    assert 1 < result.peak_rss_mb < 10_000


def test_a_users_module_in_the_working_folder_does_not_stand_for_ours(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("exporter.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('mine')\n")
    monkeypatch.chdir(tmp_path)
    assert call("answer").value == {"echo": {}}


def test_noise_goes_to_the_log_and_a_large_answer_arrives(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(call("shout", bytes=5_000_000).value["big"]) == 5_000_000
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "child.log").stat().st_size == 3 * 600_000 + 1


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (signal.SIGSEGV, InternalError, "died of SIGSEGV"),
        (signal.SIGABRT, InternalError, "died of SIGABRT"),
        (signal.SIGKILL, ResourceError, "was killed (SIGKILL), most likely for lack of memory"),
        (signal.SIGRTMIN + 3, InternalError, f"died of signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_death_by_signal_is_named_with_stage_and_file(
    call: Call, number: int, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        call("die", signal=int(number))
    assert f"converting of net.tflite {said}" in str(caught.value)


@pytest.mark.parametrize("status", [0, 1, 3])
def test_an_exit_without_an_answer_is_a_failure_whatever_its_status(call: Call, status: int) -> None:
    with pytest.raises(InternalError, match=f"ended with status {status} and no answer"):
        call("leave", status=status)


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        ({"kind": "memory"}, ResourceError, "ran out of memory"),
        ({"kind": "native memory"}, ResourceError, "ran out of memory"),
        ({"kind": "disk", "path": "/full/file"}, ResourceError, "cannot write /full/file: No space left"),
        ({"kind": "other"}, InternalError, "failed with KeyError: 'no such operator"),
    ],
)
def test_failures_come_back_as_what_they_are(
    call: Call, request_: dict[str, str], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        call("fail", **request_)
    assert said in str(caught.value)


def test_an_error_of_ours_comes_back_whole(call: Call) -> None:
    with pytest.raises(CalibrationError) as caught:
        call("fail", kind="ours")
    error = caught.value
    assert (error.cause, error.fix, error.details) == ("tensor 'x' is empty", "fill it", {"tensor": "x"})


def test_a_result_that_json_cannot_say_is_our_bug(call: Call) -> None:
    with pytest.raises(InternalError, match="no answer"):
        call("unspeakable")


@pytest.mark.parametrize(("call", "limit_s"), [("fresh", 10), ("warm", 3)], indirect=["call"])
def test_a_child_past_its_time_is_ended_with_its_own_children(
    call: Call, limit_s: float, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    handles: list[int] = []
    watcher = threading.Thread(target=_watch, args=(ready, handles))
    watcher.start()
    with pytest.raises(TimeLimitError, match=rf"converting of net\.tflite took longer than {limit_s} s"):
        call("loop", timeout_s=limit_s, ready=str(ready))
    watcher.join(60)
    assert len(handles) == 2
    for handle in handles:
        _await_end(handle)


def _watch(ready: Path, handles: list[int]) -> None:
    """Take a handle on each process that the child names, so that their pids cannot be mistaken later."""
    pause = threading.Event()
    for _ in range(6000):
        words = ready.read_text().split() if ready.exists() else []
        if len(words) == 2:
            handles.extend(os.pidfd_open(int(word)) for word in words)
            return
        pause.wait(0.01)


def _await_end(handle: int) -> None:
    import select

    try:
        assert select.select([handle], [], [], 30)[0], "a process outlived its call"
    finally:
        os.close(handle)


@pytest.mark.skipif(sys.platform != "linux", reason="a child learns of its parent's death on Linux only")
def test_a_child_whose_parent_is_already_dead_does_not_start(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "request").write_text("{}")
    command = [
        sys.executable,
        "-m",
        "exporter.system.isolation",
        "job",
        "json:loads",
        str(tmp_path / "request"),
        str(tmp_path / "r"),
    ]
    ended = subprocess.run([*command, "1"], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL

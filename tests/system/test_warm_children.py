"""Forks of a warm server: what one job does never reaches the next, and what the caller has become always does."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import InternalError, ResourceError, TimeLimitError
from exporter.system.isolation import IsolatedResult, call_isolated
from exporter.system.isolation.server import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm servers exist on Linux only")
HERE = Path(__file__).parent
Call = Callable[..., IsolatedResult]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that calls one of `isolated_functions` in a fork of a server that has numpy."""
    monkeypatch.syspath_prepend(str(HERE))

    def run(name: str, *, preload: tuple[str, ...] = ("numpy",), **request: Any) -> IsolatedResult:
        return call_isolated(
            f"isolated_functions:{name}",
            request,
            stage="converting",
            subject="net.tflite",
            log=tmp_path / "child.log",
            timeout_s=request.pop("timeout_s", 60),
            preload=preload,
        )

    return run


def _server(call: Call) -> int:
    """Return the process that forks for `call`."""
    server: int = call("look").value["parent"]
    assert server != os.getpid()
    return server


def test_a_job_starts_from_what_the_libraries_were_and_from_nothing_else(call: Call) -> None:
    first, second = call("look").value, call("look").value
    assert second["parent"] == first["parent"] != os.getpid(), "both are forks of one server"
    for name in ("global", "module", "variable", "folder", "umask", "path", "error state", "test"):
        assert second[name] == first[name], name
    assert (first["global"], first["module"], first["variable"]) == (None, False, None)
    assert first["folder"] == str(Path.cwd())
    for name in ("numpy", "random"):
        assert second[name] != first[name], f"two interpreters draw other numbers from {name}"


def test_what_one_job_held_is_not_in_the_peak_of_the_next(call: Call) -> None:
    plain = call("look").peak_rss_mb
    assert call("look", hold=200_000_000).peak_rss_mb > plain + 190
    assert call("look").peak_rss_mb < plain + 20


def test_a_job_finds_what_its_caller_finds_now(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _server(call)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = call("look").value
    assert (found["folder"], found["parent"]) == (str(elsewhere), server)
    assert "test_a_job_finds_what_its_caller_finds_now" in found["test"]
    elsewhere.rmdir()
    assert call("answer", n=1).value == {"echo": {"n": 1}}, "a working folder that is gone is no hindrance"
    monkeypatch.chdir(tmp_path)

    # A library may have acted on these when it was imported: another server is started, and the older one ends.
    old = os.pidfd_open(server)
    monkeypatch.setenv("LEFT_BEHIND", "by the caller")
    assert call("look").value["variable"] == "by the caller"
    _await_end(old)
    mask = os.umask(0o027)
    try:
        assert call("look").value["umask"] == 0o027
    finally:
        os.umask(mask)


def test_a_limit_of_the_callers_is_a_limit_of_its_jobs(call: Call) -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (4096 if limits[0] != 4096 else 8192, hard))
    try:
        wanted = resource.getrlimit(resource.RLIMIT_CORE)[0]
        assert call("limit").value == {"core": wanted}
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def test_a_module_written_or_changed_since_the_server_started_is_found(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    monkeypatch.syspath_prepend(str(library))
    server = _server(call)
    for value in (1, 22):
        (library / "written_just_now.py").write_text(f"VALUE = {value}\n")
        found = call("look", written=True).value
        assert (found["value"], found["parent"]) == (value, server)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_the_death_of_one_job_is_nothing_to_the_next(call: Call, number: int) -> None:
    server = _server(call)
    with pytest.raises((InternalError, ResourceError)):
        call("die", signal=int(number))
    assert _server(call) == server


def test_a_job_past_its_time_leaves_the_server_usable(call: Call, tmp_path: Path) -> None:
    server = _server(call)
    with pytest.raises(TimeLimitError):
        call("loop", timeout_s=1, ready=str(tmp_path / "ready"))
    assert _server(call) == server


def test_a_server_killed_between_jobs_is_started_again(call: Call, tmp_path: Path) -> None:
    server = _server(call)
    handle = os.pidfd_open(server)
    os.kill(server, signal.SIGKILL)
    _await_end(handle)
    assert _server(call) != server
    assert not (tmp_path / "child.log").read_bytes(), "nobody needs to know"


def test_a_server_killed_under_a_job_takes_it_along(call: Call, tmp_path: Path) -> None:
    server, ready = _server(call), tmp_path / "ready"
    handles: list[int] = []

    def strike() -> None:
        while not (ready.exists() and len(words := ready.read_text().split()) == 2):
            time.sleep(0.01)
        handles.extend(os.pidfd_open(int(word)) for word in words)
        os.kill(server, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(ResourceError, match="SIGKILL"):
        call("loop", ready=str(ready))
    thread.join(60)
    for handle in handles:
        _await_end(handle)
    assert call("answer").value == {"echo": {}}


def test_threads_call_side_by_side(call: Call) -> None:
    """Each job waits for the other: one after another they would wait for ever."""
    answers: dict[int, Any] = {}
    left, right = os.pipe(), os.pipe()
    names = [f"/proc/{os.getpid()}/fd/{end}" for pair in (left, right) for end in pair]

    def ask(mine: str, theirs: str, number: int) -> None:
        answers[number] = call("meet", mine=mine, theirs=theirs).value

    threads = [
        threading.Thread(target=ask, args=(names[1], names[2], 1)),
        threading.Thread(target=ask, args=(names[3], names[0], 2)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for end in (*left, *right):
        os.close(end)
    assert answers == {1: {"met": True}, 2: {"met": True}}


def test_a_server_that_a_passing_thread_started_outlives_it(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEFT_BEHIND", "so that a server is started")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(_server(call)))
    thread.start()
    thread.join(60)
    assert found == [_server(call)]


@pytest.mark.parametrize(
    ("library", "reason"),
    [("thread_starter", b"started 1 thread"), ("broken_library", b"libmissing.so.1")],
)
def test_a_library_that_no_fork_can_rely_on_gets_fresh_interpreters(
    call: Call, tmp_path: Path, library: str, reason: bytes
) -> None:
    for _ in range(2):
        assert call("look", preload=(library,)).value["parent"] == os.getpid()
    *_, first, second = [
        line for line in (tmp_path / "child.log").read_bytes().splitlines() if b"fresh interpreter" in line
    ]
    assert first == second and reason in first
    assert _children_with(library) == [], "an unfit server is of no use"


def test_a_library_that_is_not_installed_is_the_jobs_own_affair(call: Call) -> None:
    assert (
        call("look", preload=("numpy", "no_such_library", "numpy.no_such_part")).value["parent"]
        != os.getpid()
    )


def test_the_user_may_ask_for_fresh_interpreters(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_FRESH_CHILDREN", "1")
    assert call("look").value["parent"] == os.getpid()
    monkeypatch.setenv("EDGE_FRESH_CHILDREN", "0")
    assert call("look").value["parent"] != os.getpid()


def test_a_server_that_nobody_asks_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.system.isolation.server.IDLE_SECONDS", 0.01)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Server(theirs, "").serve()


def test_a_server_that_still_imports_is_ended_at_the_jobs_limit(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.system.isolation.warm._GRACE_SECONDS", 0.1)
    with pytest.raises(TimeLimitError):
        call("answer", preload=("slow_library",), timeout_s=0.5)
    assert _children_with("slow_library") == []


OWNER = """
import os, signal, sys
from pathlib import Path
from exporter.system.isolation import call_isolated
def server():
    how = {"stage": "", "subject": "", "log": Path(sys.argv[1]), "preload": ("numpy",)}
    return call_isolated("isolated_functions:look", {}, **how).value["parent"]
mine = server()
if not os.fork():  # what is forked has servers of its own, and ends none of its parent's
    os._exit(0 if server() != mine else 1)
_, status = os.wait()
print(mine, status, server() == mine, flush=True)
sys.stdin.read(1)
EXIT
"""


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_server_ends_with_its_owner(tmp_path: Path, end: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.replace("EXIT", end), str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
        text=True,
    )
    assert owner.stdin and owner.stdout
    with owner:
        server, *rest = owner.stdout.readline().split()
        assert rest == ["0", "True"]
        handle = os.pidfd_open(int(server))
        owner.stdin.close()
    _await_end(handle)


def _children_with(word: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and word in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _await_end(handle: int) -> None:
    import select

    try:
        assert select.select([handle], [], [], 30)[0], "a process outlived its owner"
    finally:
        os.close(handle)

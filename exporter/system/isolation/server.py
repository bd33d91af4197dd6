"""The warm process: it imports the libraries that the jobs of its kind need, and forks once for each job.

A job runs in the fork and never here: what it changes, leaks or breaks goes away with it, and the next one starts from
what the libraries were right after their import. Only installed libraries are named here; the project's own modules
and a user's are imported by each job anew.

A fork copies the one thread that asks for it. This process has no other: it starts none, and if a library did while it
was imported, every job is refused and its caller takes a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from exporter.system.isolation.child import Job, die_with, run
from exporter.system.isolation.fresh import kill_group

IDLE_SECONDS = 120.0  # the memory of a server that nobody asks goes back to the system
MESSAGE_BYTES = 1 << 18
_SETTLING_SECONDS = 1.0


class _Fork:
    """One job at work, and the socket on which its caller hears of it."""

    def __init__(self, pid: int, report: socket.socket) -> None:
        self.pid = pid
        self.report = report
        self.handle = os.pidfd_open(pid)

    def kill(self) -> None:
        """Kill the job and what it started; its number stays its own until it is reaped."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        kill_group(self.pid)

    def reap(self) -> int:
        """Return the exit status of a job that has ended, negative for a signal; nothing of it is left then."""
        kill_group(self.pid)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Let go of what was held open here."""
        self.report.close()
        os.close(self.handle)


class Server:
    """What takes jobs from a socket and forks for each, or refuses all of them with the reason `refusal`."""

    def __init__(self, control: socket.socket, refusal: str) -> None:
        self._control = control
        self._refusal = refusal
        self._selector = selectors.DefaultSelector()
        self._forks: list[_Fork] = []
        self._is_wanted = True

    def serve(self) -> None:
        """Take jobs until nobody can send one any more, or nobody has for a while; then wait for those at work."""
        self._selector.register(self._control, selectors.EVENT_READ, self._take)
        while self._is_wanted or self._forks:
            ready = self._selector.select(None if self._forks else IDLE_SECONDS)
            if not ready:
                return
            for key, _ in ready:
                key.data()

    def _take(self) -> None:
        """Take one message of the owner: a job with its report socket, its log and its working folder."""
        try:
            message, handles, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 3)
        except ConnectionResetError:
            message, handles = b"", []
        if not message:  # the owner is gone, or wants no more
            self._selector.unregister(self._control)
            self._is_wanted = False
            return
        given, log, folder = handles
        report = socket.socket(fileno=given)
        try:
            self._start(json.loads(message), report, log, folder)
        finally:
            os.close(log)
            os.close(folder)

    def _start(self, message: dict[str, Any], report: socket.socket, log: int, folder: int) -> None:
        server = os.getpid()
        try:
            refusal = self._refusal or threads_left()
            pid = -1 if refusal else os.fork()
        except OSError as error:
            refusal, pid = f"it cannot be forked: {error.strerror}", -1
        if not pid:
            self._become(message, report, log, folder, server)
        if refusal:
            with report:
                _tell(report, {"refused": refusal})
            return
        fork = _Fork(pid, report)
        self._forks.append(fork)
        self._selector.register(fork.report, selectors.EVENT_READ, partial(self._hear, fork))
        self._selector.register(fork.handle, selectors.EVENT_READ, partial(self._end, fork))
        _tell(report, {"pid": pid})

    def _become(
        self, message: dict[str, Any], report: socket.socket, log: int, folder: int, server: int
    ) -> NoReturn:
        """Turn this fork into the job: of the server it keeps the libraries, and nothing else."""
        try:
            os.setsid()
            die_with(server)
            for handle in (1, 2):
                os.dup2(log, handle)
            os.fchdir(folder)
            for fork in self._forks:
                fork.close()
            self._selector.close()
            self._control.close()
            report.close()
            os.close(log)
            os.close(folder)
            _forget_the_past(message["told"])
            run(Job(**message["job"]))
        except BaseException:  # noqa: BLE001 - a fork that went on as the server would take its jobs
            traceback.print_exc()
        finally:
            os._exit(1)

    def _hear(self, fork: _Fork) -> None:
        """The caller never speaks; that its side has closed means that it wants the job no more."""
        if fork in self._forks:
            self._selector.unregister(fork.report)
            fork.kill()

    def _end(self, fork: _Fork) -> None:
        """Tell the caller how its job has ended."""
        self._selector.unregister(fork.handle)
        with contextlib.suppress(KeyError):  # it is gone already if the caller was heard before
            self._selector.unregister(fork.report)
        self._forks.remove(fork)
        _tell(fork.report, {"status": fork.reap()})
        fork.close()


def _tell(report: socket.socket, message: Mapping[str, Any]) -> None:
    """Tell the caller of a job, if it still listens."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        report.send(json.dumps(message).encode())


def _forget_the_past(told: Mapping[str, str | None]) -> None:
    """Bring a fork to what a new interpreter would have found here and now."""
    for name, value in told.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    importlib.invalidate_caches()  # a module may have been written since the folders were last listed
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator does this by itself


def preload(names: Sequence[str]) -> str:
    """Import the libraries that are installed; return why this process is not fit to be forked, "" if it is."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"this system has no process handles: {error.strerror}"
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
                traceback.print_exc()
                return f"{name} cannot be imported: {missing}"
        except Exception as error:  # noqa: BLE001 - somebody else's library, and a fresh interpreter may do better
            traceback.print_exc()
            return f"{name} cannot be imported: {error}"
    gc.collect()
    gc.freeze()  # what is never collected is never written to, and its pages stay shared
    return threads_left()


def threads_left() -> str:
    """Return which threads a fork would lose, "" if there are none.

    OpenBLAS ends its threads before a fork and starts them when it is next asked, so that the first fork may be of
    nothing: what is left after it is what forks do not reckon with.
    """
    if _threads() == 1:
        return ""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + _SETTLING_SECONDS
    while (count := _threads()) > 1:
        if time.monotonic() > deadline:
            return f"its libraries have started {count - 1} thread(s), which a fork would lose"
        time.sleep(0.01)
    return ""


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - one system call, at each fork


def serve(control: int, libraries: Sequence[str]) -> NoReturn:
    """Be a warm server: import `libraries`, take jobs from the socket `control`, and end this process when none can come."""
    connection = socket.socket(fileno=control)
    connection.set_inheritable(False)
    server = Server(connection, preload(libraries))
    # The log belongs to the job that this process was started for.
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for handle in (1, 2):
        os.dup2(nowhere, handle)
    os.close(nowhere)
    server.serve()
    os._exit(0)

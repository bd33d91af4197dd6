"""A job in a fork of a warm server: the caller's side, and the servers of this process.

A server belongs to one kind of job, its interpreter and the libraries it preloads, and there is one of a kind at most;
one that has taken over another environment than a child would now makes room for its successor. It holds what its
libraries take when they are imported (litert_torch 530 MB, coremltools 450 MB, the runtimes 60 MB; a third of it is
code that any process shares), ends when nobody has asked it for two minutes, and never outlives this process.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from exporter.system.isolation.child import Job
from exporter.system.isolation.fresh import kill_group
from exporter.system.isolation.inheritance import (
    CHANGING,
    Inherited,
    Interpreter,
    environment_of_child,
    inherited,
)
from exporter.system.isolation.server import MESSAGE_BYTES

SWITCH = "EDGE_FRESH_CHILDREN"
_GRACE_SECONDS = 10.0

Kind = tuple[str, ...]
"""An interpreter and the libraries that its server preloads."""


class ServerLostError(Exception):
    """The server ended before it took the job."""


class RefusedError(Exception):
    """This kind of job cannot have a warm server; the text says why."""


def is_possible() -> bool:
    """Whether this system can fork soundly (Linux), and the user did not ask for fresh interpreters."""
    if os.environ.get(SWITCH, "0") not in {"", "0"} or sys.platform != "linux":
        return False
    return Path("/proc/self/task").is_dir()


class WarmChild:
    """A job at work in a fork of a server."""

    def __init__(self, job: Job, how: Interpreter, sink: BinaryIO) -> None:
        """Ask the server of this kind for `job`, starting it if there is none.

        Raises `RefusedError` if the kind is known to be unfit, `ServerLostError` if its server is dead.
        """
        self._pid: int | None = None
        self._is_over = False
        self._server = _FLEET.server((how.python, *how.preload), how.environment, sink)
        self._report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = os.open(".", os.O_PATH)  # a handle: the working folder may have lost its name
        variables = environment_of_child(how.environment)
        told = {name: variables.get(name) for name in CHANGING}
        try:
            self._server.send({"job": asdict(job), "told": told}, [theirs.fileno(), sink.fileno(), folder])
        except OSError as gone:
            self._report.close()
            _FLEET.drop(self._server)
            raise ServerLostError from gone
        finally:
            theirs.close()
            os.close(folder)

    def wait(self, timeout_s: float | None) -> int:
        """Return the exit status (negative: the signal it died of); `TimeoutError` if it takes longer.

        Raises `RefusedError` and `ServerLostError` before the job has begun. A server that is killed while the job is
        at work takes it along: the job died of SIGKILL then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while message := self._receive(deadline):
            if "refused" in message:
                self._is_over = True
                _FLEET.refuse(self._server, message["refused"])
                raise RefusedError(message["refused"])
            if "status" in message:
                self._is_over = True
                status: int = message["status"]
                return status
        self._lose()
        if self._pid is None:
            raise ServerLostError
        return -signal.SIGKILL

    def end(self) -> None:
        """Kill what is left of the job and of the processes it started, so that nothing outlives the call."""
        with self._report:
            if self._is_over:
                return
            # This is how the server hears that the job is not wanted any more.
            self._report.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _GRACE_SECONDS
            try:
                while message := self._receive(deadline):
                    if "pid" not in message:
                        return
            except TimeoutError:
                pass  # it may be importing still, and hears nothing
            self._lose()

    def _lose(self) -> None:
        """End a server that tells no more; its job ends with it, and what the job has started is ended here."""
        self._is_over = True
        _FLEET.drop(self._server)
        if self._pid is not None:
            kill_group(self._pid)

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        """Return what the server tells next, empty when it tells no more; `TimeoutError` past `deadline`."""
        left = None if deadline is None else max(deadline - time.monotonic(), 1e-3)
        self._report.settimeout(left)
        try:
            message = self._report.recv(MESSAGE_BYTES)
        except ConnectionResetError:
            message = b""
        told: dict[str, Any] = json.loads(message) if message else {}
        self._pid = told.get("pid", self._pid)
        return told


class _Server:
    """A warm server: the process, and the socket that keeps it alive."""

    def __init__(
        self, kind: Kind, conditions: Inherited, environment: Mapping[str, str], sink: BinaryIO
    ) -> None:
        self.kind = kind
        self.conditions = conditions
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Linux ends a child with the thread that started it: only the main one lives as long as the process.
        owner = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        python, *libraries = kind
        command = [python, "-P", "-m", "exporter.system.isolation", "server"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(owner), *libraries],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment_of_child(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any], handles: list[int]) -> None:
        """Send a job with its open files; `OSError` if the server is gone."""
        socket.send_fds(self._control, [json.dumps(message).encode()], handles)

    def release(self) -> None:
        """Let the server end once its jobs have."""
        self._control.close()

    def kill(self) -> None:
        """End the server, and with it any job of its that is still at work."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def disown(self) -> None:
        """Forget the server in a process that was forked from its owner."""
        self._control.close()
        self._process.returncode = 0  # it is not this process that is to wait for it


class _Fleet:
    """The servers of this process, which all of its threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[Kind, _Server] = {}
        self._released: list[_Server] = []
        self._refusals: dict[Kind, tuple[Inherited, str]] = {}

    def server(self, kind: Kind, environment: Mapping[str, str], sink: BinaryIO) -> _Server:
        """Return the server of `kind`, started here if there is none that has taken over what a child would now.

        Raises `RefusedError` if one was refused under the same conditions.
        """
        conditions = inherited(environment)
        with self._lock:
            self._released = [server for server in self._released if server.is_alive]
            if (refusal := self._refusals.get(kind)) and refusal[0] == conditions:
                raise RefusedError(refusal[1])
            server = self._servers.get(kind)
            if server is not None and server.is_alive and server.conditions == conditions:
                return server
            if server is not None:
                server.release()
                self._released.append(server)
            self._servers[kind] = started = _Server(kind, conditions, environment, sink)
            return started

    def drop(self, server: _Server) -> None:
        """End `server`, so that the next job of its kind has a new one."""
        with self._lock:
            server.kill()
            if self._servers.get(server.kind) is server:
                del self._servers[server.kind]

    def refuse(self, server: _Server, reason: str) -> None:
        """End `server` and start none of its kind again while what a child takes over stays as it is."""
        self.drop(server)
        with self._lock:
            self._refusals[server.kind] = (server.conditions, reason)

    def close(self) -> None:
        """End all servers."""
        with self._lock:
            for server in (*self._servers.values(), *self._released):
                server.kill()
            self._servers.clear()
            self._released.clear()

    def forget(self) -> None:
        """Begin anew in a forked process: the servers are its parent's."""
        for server in (*self._servers.values(), *self._released):
            server.disown()
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._servers.clear()
        self._released.clear()


_FLEET = _Fleet()
atexit.register(_FLEET.close)
os.register_at_fork(after_in_child=_FLEET.forget)

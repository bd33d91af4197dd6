"""A job in an interpreter of its own, started for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import BinaryIO

from exporter.system.isolation.child import Job
from exporter.system.isolation.inheritance import Interpreter, environment_of_child


class FreshChild:
    """A job at work in a new interpreter."""

    def __init__(self, job: Job, how: Interpreter, sink: BinaryIO) -> None:
        """Start `job` in a new interpreter `how` it is to run; `sink` receives what it prints."""
        # -P: a user's folder may hold a `targets` or a `json.py`, and the parent would not find those either.
        command = [how.python, "-P", "-m", "exporter.system.isolation", "job"]
        self._process = subprocess.Popen(
            [*command, job.function, job.request, job.result, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment_of_child(how.environment),
            start_new_session=True,
        )

    def wait(self, timeout_s: float | None) -> int:
        """Return the exit status (negative: the signal it died of); `TimeoutError` if it takes longer."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as expired:
            raise TimeoutError from expired

    def end(self) -> None:
        """Kill what is left of the job and of the processes it started, so that nothing outlives the call."""
        kill_group(self._process.pid)
        self._process.wait()


def kill_group(leader: int) -> None:
    """Kill the processes of the group that `leader` began, if there are any left."""
    # macOS says "not permitted" of a group whose last member has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)

"""A worker process, from the outside."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import IO, cast

from targets.devices.probe.events import Json
from targets.devices.probe.launching import python


class Worker:
    """A worker process and what is known of it."""

    def __init__(self, folder: Path, entry: Json, runtime: str, threads: int) -> None:
        self.entry, self.runtime, self.threads = entry, runtime, threads
        self.facts: Json = {}
        self.blocks: list[Json] = []
        self.times: list[float] = []
        self.instructions: list[float] = []
        self.counts = str(folder / "counts")
        self._child = subprocess.Popen(
            [*python(counts=self.counts), str(folder / "probe.py"), "worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._orders = cast(IO[str], self._child.stdin)
        self._answers = cast(IO[str], self._child.stdout)

    def ask(self, order: Json) -> Json:
        """Return the worker's answer; `failed` if it has died."""
        try:
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
            line = self._answers.readline()
        except OSError:
            line = ""
        if line:
            answer: Json = json.loads(line)
            return answer
        status = self._child.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
        return {"failed": "the process that ran it " + how + (" (out of memory?)" if status == -9 else "")}

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()
        for stream in (self._orders, self._answers):
            with contextlib.suppress(OSError):
                stream.close()

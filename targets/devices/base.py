"""The conversation with a device: one program and its files go in, marked lines of JSON come out.

A device is only a command that starts a Python somewhere and passes its standard streams. What the other side says is
not trusted: unmarked lines are noise, control characters are removed, and the answer must fit the schema.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast, runtime_checkable

from exporter.errors import DeviceError, EdgeError, IntegrityError, TimeLimitError
from exporter.system.files import digest
from targets.assembly import assemble

BOOTSTRAP = (
    "import sys; source = sys.stdin.buffer.read(int(sys.stdin.buffer.readline())); "
    "probe = {'__name__': 'probe'}; exec(compile(source, 'probe.py', 'exec'), probe); "
    "sys.exit(probe['serve'](source))"
)
"""All that a device is ever asked to run; everything else is data on its standard input."""
_MARK = b"EDGE1 "
_CHUNK_BYTES = 1 << 20
_LONGEST_LINE = 64 << 20
_COMPLAINT_BYTES = 64 << 10
SILENCE_SECONDS = 60.0
"""The probe speaks every three seconds; after this long without a word the link is taken for dead."""


class Device(Protocol):
    """A place that can run the probe."""

    @property
    def where(self) -> str:
        """The place as the user named it."""

    def command(self) -> list[str]:
        """Return the command that runs `BOOTSTRAP` there, this process's streams being its own."""

    def explain(self, exit_code: int, complaint: str) -> EdgeError:
        """Return the error for a command that ended without an answer; `complaint` is its standard error."""


@runtime_checkable
class Instrument(Protocol):
    """A place that measures in a way of its own, without the probe."""

    @property
    def where(self) -> str:
        """The place as the user named it."""

    def measure(
        self, request: Mapping[str, Any], parcels: Sequence[Parcel], step: Callable[[str], None]
    ) -> dict[str, Any]:
        """Return what the probe would answer to `request`; `step` hears what it does."""


Place = Device | Instrument
"""Where a bundle can be measured."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One file to send, and its path below the device's scratch folder."""

    source: Path
    path: str


def measure(
    place: Place, request: Mapping[str, Any], parcels: Sequence[Parcel], step: Callable[[str], None]
) -> dict[str, Any]:
    """Return what `place` answers to `request`, in its own way or by the probe; `step` hears what it does.

    Raises what `converse` raises.
    """
    if isinstance(place, Instrument):
        return place.measure(request, parcels, step)
    return converse(place, request, parcels, step=step)


def converse(
    device: Device,
    request: Mapping[str, Any],
    parcels: Sequence[Parcel],
    *,
    step: Callable[[str], None],
    silence_s: float = SILENCE_SECONDS,
) -> dict[str, Any]:
    """Send `request` and `parcels` to the probe on `device` and return its answer; `step` hears what it does.

    Raises `DeviceError` (18) for a device that refuses, vanishes or lacks something, `TimeLimitError` (16) for one
    that falls silent, `IntegrityError` (19) if files arrived changed.
    """
    conversation = _Conversation(device, silence_s)
    try:
        conversation.send(request, parcels)
        for event in conversation.events():
            match event.get("event"):
                case "result" if isinstance(event.get("result"), dict):
                    return dict(event["result"])
                case "error":
                    raise _reported(device, event)
                case "step":
                    step(str(event.get("label", "")))
        raise conversation.failure()
    finally:
        conversation.close()


class _Conversation:
    """A started device command and the threads that keep its three streams flowing."""

    def __init__(self, device: Device, silence_s: float) -> None:
        self._device, self._silence_s = device, silence_s
        command = device.command()
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise DeviceError(f"{command[0]} is not installed", fix=f"install {command[0]}") from error
        self._orders = cast(IO[bytes], self._child.stdin)
        self._answers = cast(IO[bytes], self._child.stdout)
        self._complaints = cast(IO[bytes], self._child.stderr)
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._complaint = b""
        self._sign_of_life = time.monotonic()
        self._readers = [threading.Thread(target=task, daemon=True) for task in (self._listen, self._collect)]
        for thread in self._readers:
            thread.start()

    def send(self, request: Mapping[str, Any], parcels: Sequence[Parcel]) -> None:
        """Start sending everything; a device that stops reading is found by its silence."""
        listing = [
            {"path": item.path, "bytes": item.source.stat().st_size, "sha256": digest(item.source)}
            for item in parcels
        ]
        program = assemble("targets.devices.probe").encode()
        body = json.dumps({**request, "files": listing}).encode()
        head = b"%d\n%b%d\n%b" % (len(program), program, len(body), body)
        threading.Thread(target=self._feed, args=(head, parcels), daemon=True).start()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what the probe says until it ends; `TimeLimitError` when it falls silent."""
        while True:
            try:
                line = self._lines.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() - self._sign_of_life > self._silence_s:
                    raise TimeLimitError(
                        f"{self._device.where} has said nothing for {self._silence_s:.0f} s",
                        fix="check that the device is up and reachable, then run the same command again",
                    ) from None
                continue
            if line is None:
                return
            with contextlib.suppress(ValueError, RecursionError):
                event = cleaned(json.loads(line))
                if isinstance(event, dict):
                    yield event

    def failure(self) -> EdgeError:
        """Return why the command ended without an answer."""
        exit_code = self._child.wait()
        for thread in self._readers:
            thread.join(timeout=5)
        complaint = cleaned(self._complaint.decode("utf-8", errors="replace"), keep="\n")
        return self._device.explain(exit_code, complaint)

    def close(self) -> None:
        """Hang up: the probe ends and cleans up when its standard input closes."""
        with contextlib.suppress(OSError, ValueError):
            self._orders.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        for thread, stream in zip(self._readers, (self._answers, self._complaints), strict=True):
            thread.join(timeout=5)
            if not thread.is_alive():
                stream.close()

    def _feed(self, head: bytes, parcels: Sequence[Parcel]) -> None:
        with contextlib.suppress(OSError, ValueError):  # a device that hung up says why in its own stream
            self._write(head)
            for item in parcels:
                with item.source.open("rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        self._write(chunk)

    def _write(self, data: bytes) -> None:
        self._orders.write(data)
        self._orders.flush()
        self._sign_of_life = time.monotonic()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := self._answers.readline(_LONGEST_LINE):
                if line.startswith(_MARK):
                    self._sign_of_life = time.monotonic()
                    self._lines.put(line[len(_MARK) :])
        self._lines.put(None)

    def _collect(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._complaints.readline(_COMPLAINT_BYTES):
                self._complaint = (self._complaint + chunk)[-_COMPLAINT_BYTES:]


def _reported(device: Device, event: Mapping[str, Any]) -> EdgeError:
    cause = f"{device.where}: {event.get('cause', 'the probe failed')}"
    fix = str(event.get("fix", "try again"))
    return IntegrityError(cause, fix=fix) if event.get("kind") == "integrity" else DeviceError(cause, fix=fix)


def cleaned(value: Any, *, keep: str = "") -> Any:
    """Return `value` with control characters (terminal escapes) of every text in it removed."""
    if isinstance(value, str):
        return "".join(letter for letter in value if letter in keep or unicodedata.category(letter)[0] != "C")
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item, keep=keep) for item in value]
    return value


def last_line(text: str) -> str:
    """Return the last line of `text` that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"

"""A benchmark program of the user's on an Android phone: LiteRT's `benchmark_model` or `onnxruntime_perf_test`.

It times, on random inputs, and does not answer golden vectors. Every invocation is one block; blocks take turns and are
thrown away while Android's thermal status is MODERATE or worse. Times of one inference are told by the program itself.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import DeviceError, EdgeError, IntegrityError, UsageError
from exporter.system.files import digest
from targets.devices.adb import AdbDevice, run_adb, shown
from targets.devices.android import BOARD_COMMAND, STATE_COMMAND, read_board, read_state, was_hot
from targets.devices.base import Parcel, last_line
from targets.devices.benchmark_output import Told, read_output

_PLACE = "/data/local/tmp"
_PUSH_S = 600.0
_BLOCK_SPARE_S = 120.0
_HEAD_BYTES = 4096
_ABIS = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86"}
_KINDS = {"benchmark_model": "litert", "perf_test": "onnxruntime"}
_READS = {"litert": ("tflite",), "onnxruntime": ("onnx", "ort")}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdbBenchmark:
    """A phone and the program that measures on it."""

    phone: AdbDevice
    program: Path
    runtime: str

    @classmethod
    def parse(cls, where: str, program: Path) -> AdbBenchmark:
        """Return the phone with its program, known by its name; `UsageError` (2) for any other."""
        runtime = next((kind for part, kind in _KINDS.items() if part in program.name), None)
        if runtime is None:
            raise UsageError(
                f"--benchmark {program.name}: not a program whose answers are understood",
                fix="give LiteRT's benchmark_model or onnxruntime_perf_test, under that name",
            )
        return cls(AdbDevice.parse(where), program, runtime)

    @property
    def where(self) -> str:
        """The place as the user named it."""
        return self.phone.where

    def measure(
        self, request: Mapping[str, Any], parcels: Sequence[Parcel], step: Callable[[str], None]
    ) -> Json:
        """Return what the probe would answer to `request`, as far as the program tells it.

        Raises `UsageError` (2) for a program that is none or of another runtime than the one asked for, `DeviceError`
        (18) for a phone that is not ready, vanishes or cannot run it, `TimeLimitError` (16) for one that falls silent,
        `IntegrityError` (19) if files arrived changed. Nothing is left on the phone.
        """
        if request["runtime"] not in {None, self.runtime}:
            raise UsageError(
                f"--runtime {request['runtime']}, and {self.program.name} measures {self.runtime}",
                fix="leave --runtime out, or give the other program",
            )
        abi = _abi_of(self.program)
        serial = self.phone.found()
        self._require_abi(serial, abi)
        session = _Session(self, serial, f"{_PLACE}/edge-export-{secrets.token_hex(6)}", request, step)
        try:
            return session.measure(parcels)
        finally:
            session.clear()

    def _require_abi(self, serial: str, abi: str) -> None:
        told = self.phone.shell(serial, "getprop ro.product.cpu.abilist")[1].strip()
        if abi not in told.split(","):
            raise DeviceError(
                f"{self.program.name} is made for {abi}, {self.where} runs {told or 'nothing it tells'}",
                fix="give the program for the phone's processor",
            )


def _abi_of(program: Path) -> str:
    """Return Android's name of the processor that `program` is made for; `UsageError` (2) if it is no such program."""
    try:
        with program.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {program}: {error.strerror}", fix="name a file") from error
    abi = _ABIS.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None
    if abi is None or b"/ld-linux" in head:  # the C library of desktops and boards, which phones do not have
        raise UsageError(
            f"--benchmark {program.name} is no program for Android",
            fix="give an ELF file built for Android, such as LiteRT's android_arm64/benchmark_model",
        )
    return abi


@dataclass(slots=True, eq=False)
class _Row:
    """One file with one number of threads, what its blocks told, and why it failed if it did."""

    entry: Mapping[str, Any]
    threads: int
    blocks: list[Json] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    """One measurement on one phone, in one folder there."""

    owner: AdbBenchmark
    serial: str
    home: str
    request: Mapping[str, Any]
    step: Callable[[str], None]

    def measure(self, parcels: Sequence[Parcel]) -> Json:
        """Return the answer; `DeviceError` (18) if the program could measure nothing."""
        artifacts, runtime, name = self.request["artifacts"], self.owner.runtime, self.owner.program.name
        runnable = [item for item in artifacts if item["format"] in _READS[runtime]]
        skipped = {item["file"]: f"{name} does not read it" for item in artifacts if item not in runnable}
        rows = [_Row(item, threads) for item in runnable for threads in self.request["threads"]]
        if rows:
            self._push_all(runnable, parcels)
            board = read_board(self._shell(BOARD_COMMAND)[1])
            self._time_in_turns(rows)
            skipped |= {row.entry["file"]: row.failure for row in rows if row.failure is not None}
        measured = [_measurement(row, runtime) for row in rows if row.failure is None]
        if not measured:
            reasons = "; ".join(f"{file}: {why}" for file, why in skipped.items())
            raise DeviceError(
                f"{name} could measure nothing of the bundle on {self.owner.where}: {reasons}",
                fix="give a program that reads the bundle's formats: benchmark_model for .tflite, "
                "onnxruntime_perf_test for .onnx and .ort; run it once by hand with adb shell",
            )
        return {
            "device": board,
            "measurements": measured,
            "skipped": [{"file": file, "runtime": runtime, "why": why} for file, why in skipped.items()],
        }

    def clear(self) -> None:
        """Remove the folder, and end the program if it still runs; a phone that went away is not asked twice."""
        with contextlib.suppress(EdgeError):
            run_adb(
                *("-s", self.serial, "shell"),
                f"kill -9 $(cat {self.home}/pid 2>/dev/null) 2>/dev/null; rm -rf {self.home}",
            )

    def _shell(self, command: str, **patience: float) -> tuple[int, str]:
        return self.owner.phone.shell(self.serial, command, **patience)

    def _push_all(self, runnable: Sequence[Mapping[str, Any]], parcels: Sequence[Parcel]) -> None:
        program = self.owner.program
        paths = [item["path"] for item in runnable]
        sent = [(program, program.name)]
        sent += [(library, library.name) for library in sorted(program.parent.glob("libonnxruntime*.so"))]
        sent += [
            (parcel.source, parcel.path)
            for parcel in parcels
            if any(parcel.path == path or parcel.path.startswith(f"{path}.") for path in paths)
        ]
        for source, relative in sent:
            self.step(f"push {source.name}")
            self._push(source, f"{self.home}/{relative}")
        self._shell(f"chmod 755 {self.home}/{shlex.quote(program.name)}")

    def _push(self, source: Path, target: str) -> None:
        """Copy one file and compare what arrived, by digest, or by size where the phone has no `sha256sum`."""
        quoted, where = shlex.quote(target), self.owner.where
        self._shell(f"mkdir -p {shlex.quote(str(Path(target).parent))}")
        ran = run_adb("-s", self.serial, "push", str(source.absolute()), target, patience_s=_PUSH_S)
        size = source.stat().st_size
        if ran.returncode:
            self.owner.phone.found()
            raise DeviceError(
                f"{source.name} ({size / 1e6:.0f} MB) did not reach {where}: "
                f"{last_line(shown(ran.stderr + ran.stdout))}",
                fix="free some room on the phone and try again",
            )
        _, told = self._shell(f"sha256sum {quoted} 2>/dev/null || wc -c <{quoted}")
        if not {digest(source), str(size)} & set(told.split()[:1]):
            raise IntegrityError(
                f"{source.name} arrived on {where} with other bytes",
                fix="try again, with another cable or port",
            )

    def _time_in_turns(self, rows: Sequence[_Row]) -> None:
        count = self.request["blocks"]
        for number in range(count):
            self.step(f"block {number + 1} of {count}")
            for row in rows if number % 2 == 0 else rows[::-1]:
                if row.failure is None:
                    row.failure = self._block(row)

    def _block(self, row: _Row) -> str | None:
        """Run one block, again after a pause while the phone is hot; return why the program failed, or None."""
        for attempt in range(1 + self.request["retries"]):
            if attempt:
                self.step(f"hot: cooling for {self.request['cool_s']:g} s")
                time.sleep(self.request["cool_s"])
            before = self._state()
            code, output = self._shell(
                self._command(row), patience_s=10 * self.request["block_s"] + _BLOCK_SPARE_S
            )
            if code:
                self.owner.phone.found()  # a phone that went away is the reason, not the program
                return f"{self.owner.program.name} ended with exit code {code}: {last_line(output)}"
            try:
                told = read_output(self.owner.runtime, output)
            except DeviceError as error:
                return str(error)
            after = self._state()
            hot = was_hot(before, after)
            row.blocks.append(
                {
                    "p50_ms": told.mean_ms if told.p50_ms is None else told.p50_ms,
                    "runs": told.runs,
                    "before": before,
                    "after": after,
                    "throttled": hot,
                    "counted": not hot,
                }
            )
            if not hot:
                row.told.append(told)
                return None
        return None

    def _state(self) -> Json:
        return read_state(self._shell(STATE_COMMAND)[1])

    def _command(self, row: _Row) -> str:
        """Return shell text that runs one block and keeps the program's process id while it runs."""
        program, seconds = f"{self.home}/{shlex.quote(self.owner.program.name)}", self.request["block_s"]
        model, pid = shlex.quote(f"{self.home}/{row.entry['path']}"), f"{self.home}/pid"
        if self.owner.runtime == "litert":
            run = (
                f"{program} --graph={model} --num_threads={row.threads} --num_runs={self.request['least_runs']} "
                f"--min_secs={seconds:g} --max_secs={max(60, 2 * seconds):g} --warmup_runs=1 --warmup_min_secs=0 "
                "--report_peak_memory_footprint=true"
            )
        else:
            run = (
                f"LD_LIBRARY_PATH={self.home} {program} -I -s -e cpu -x {row.threads} -y 1 -m duration "
                f"-t {max(1, round(seconds))} {model}"
            )
        return f"{run} 2>&1 & echo $! >{pid}; wait $!; code=$?; rm -f {pid}; exit $code"


def _measurement(row: _Row, runtime: str) -> Json:
    """Return one row's figures: medians over its blocks, None if every block was hot; the peak is the largest."""

    def figures(key: str) -> list[float]:
        return [value for told in row.told if (value := getattr(told, key)) is not None]

    def middle(key: str) -> float | None:
        return statistics.median(figures(key)) if figures(key) else None

    medians = [block["p50_ms"] for block in row.blocks if block["counted"]]
    centre, states = (
        statistics.median(medians) if medians else 0.0,
        [block["throttled"] for block in row.blocks],
    )
    mean = middle("mean_ms")
    keys = ("load_ms", "first_ms", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "std_ms")
    return {
        "file": row.entry["file"],
        "artifact": row.entry["artifact"],
        "runtime": runtime,
        "version": "of the given program",
        "threads": row.threads,
        **{key: middle(key) for key in keys},
        "peak_rss_mb": max(figures("peak_rss_mb"), default=None),
        "per_second": 1e3 / mean if mean else None,
        "instructions_m": None,
        "runs": sum(told.runs for told in row.told),
        "noise": (max(medians) - min(medians)) / centre if len(medians) > 1 and centre else None,
        "max_abs_error": None,
        "checked": False,
        "throttled": None if all(state is None for state in states) else any(states),
        "blocks": row.blocks,
    }

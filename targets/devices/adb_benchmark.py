"""A benchmark program of the user's on an Android phone: LiteRT's `benchmark_model` or `onnxruntime_perf_test`.

It times and does not answer golden vectors. Every invocation is one block; blocks take turns and are thrown away while
Android's thermal status is MODERATE or worse. Times of one inference are told by the program itself.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import DeviceError, EdgeError, UsageError
from targets.devices.adb import AdbDevice, run_adb
from targets.devices.base import Parcel, cleaned, last_line

_PLACE = "/data/local/tmp"
_MODERATE = 2
_PUSH_S = 600.0
_BLOCK_SPARE_S = 120.0
_ABIS = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86"}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
_READS = {"litert": ("tflite",), "onnxruntime": ("onnx", "ort")}

Json = dict[str, Any]


@dataclass(slots=True)
class _Row:
    """One file with one number of threads, and what its blocks told."""

    entry: Mapping[str, Any]
    threads: int
    path: str
    blocks: list[Json] = field(default_factory=list)
    told: list[Mapping[str, float | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AdbBenchmark:
    """A phone and the program that measures on it."""

    phone: AdbDevice
    program: Path
    runtime: str

    @classmethod
    def parse(cls, where: str, program: Path) -> AdbBenchmark:
        """Return the phone with its program, known by its name; `UsageError` (2) for any other."""
        kinds = {"benchmark_model": "litert", "perf_test": "onnxruntime"}
        runtime = next((kind for part, kind in kinds.items() if part in program.name), None)
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

        Raises `DeviceError` (18) for a phone that is not ready, vanishes or cannot run the program, `TimeLimitError`
        (16) for one that falls silent. Nothing is left on the phone.
        """
        serial = self.phone.found()
        self._require_abi(serial)
        home = f"{_PLACE}/edge-export-{secrets.token_hex(6)}"
        runnable = [item for item in request["artifacts"] if item["format"] in _READS[self.runtime]]
        skipped = [
            {"file": item["file"], "runtime": self.runtime, "why": f"{self.program.name} does not read it"}
            for item in request["artifacts"]
            if item not in runnable
        ]
        try:
            self._push(serial, home, runnable, parcels, step)
            rows = [
                _Row(item, threads, f"{home}/{item['path']}")
                for item in runnable
                for threads in request["threads"]
            ]
            failed = self._in_turns(serial, home, rows, request, step)
            skipped += [
                {"file": row.entry["file"], "runtime": self.runtime, "why": why} for row, why in failed
            ]
            lost = [id(row) for row, _ in failed]
            measured = [_measurement(row, self.runtime) for row in rows if id(row) not in lost]
            return {"device": self._describe(serial), "measurements": measured, "skipped": skipped}
        finally:
            with contextlib.suppress(EdgeError):  # a phone that went away says so above
                run_adb("-s", serial, "shell", f"rm -rf {home}")

    def _require_abi(self, serial: str) -> None:
        try:
            head = self.program.read_bytes()[:20]
        except OSError as error:
            raise UsageError(f"cannot read {self.program}: {error.strerror}", fix="name a file") from error
        own = _ABIS.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None
        if own is None:
            raise UsageError(
                f"--benchmark {self.program.name} is no program for Android",
                fix="give an ELF file for arm64-v8a",
            )
        _, told = self.phone.shell(serial, "getprop ro.product.cpu.abilist")
        if own not in told.strip().split(","):
            raise DeviceError(
                f"{self.program.name} is made for {own}, {self.where} runs {told.strip() or 'nothing it tells'}",
                fix="give the program for the phone's processor",
            )

    def _push(
        self,
        serial: str,
        home: str,
        runnable: Sequence[Mapping[str, Any]],
        parcels: Sequence[Parcel],
        step: Callable[[str], None],
    ) -> None:
        paths = [item["path"] for item in runnable]
        sent = [(self.program, self.program.name)]
        sent += [(lib, lib.name) for lib in sorted(self.program.parent.glob("libonnxruntime*.so"))]
        sent += [
            (parcel.source, parcel.path)
            for parcel in parcels
            if any(parcel.path == path or parcel.path.startswith(f"{path}.") for path in paths)
        ]
        for source, relative in sent:
            step(f"push {source.name}")
            target = f"{home}/{relative}"
            self.phone.shell(serial, f"mkdir -p {shlex.quote(str(Path(target).parent))}")
            ran = run_adb("-s", serial, "push", str(source.absolute()), target, patience_s=_PUSH_S)
            if ran.returncode:
                self.phone.found()
                why = cleaned((ran.stderr + ran.stdout).decode(errors="replace"), keep="\n")
                raise DeviceError(
                    f"{source.name} ({source.stat().st_size / 1e6:.0f} MB) did not reach {self.where}: {last_line(why)}",
                    fix="free some room on the phone and try again",
                )
        self.phone.shell(serial, f"chmod 755 {home}/{shlex.quote(self.program.name)}")

    def _in_turns(
        self,
        serial: str,
        home: str,
        rows: Sequence[_Row],
        request: Mapping[str, Any],
        step: Callable[[str], None],
    ) -> list[tuple[_Row, str]]:
        failed: list[tuple[_Row, str]] = []
        for number in range(request["blocks"]):
            step(f"block {number + 1} of {request['blocks']}")
            for row in rows if number % 2 == 0 else rows[::-1]:
                if any(row is lost for lost, _ in failed):
                    continue
                why = self._block(serial, home, row, request, step)
                if why is not None:
                    failed.append((row, why))
        return failed

    def _block(
        self,
        serial: str,
        home: str,
        row: _Row,
        request: Mapping[str, Any],
        step: Callable[[str], None],
    ) -> str | None:
        """Run one block, again after a pause while the phone is hot; return why the program failed, or None."""
        for attempt in range(1 + request["retries"]):
            if attempt:
                step(f"hot: cooling for {request['cool_s']:g} s")
                time.sleep(request["cool_s"])
            before = self._state(serial)
            code, output = self.phone.shell(
                serial,
                self._command(home, row, request),
                patience_s=10 * request["block_s"] + _BLOCK_SPARE_S,
            )
            if code:
                return f"{self.program.name} ended with exit code {code}: {last_line(output)}"
            told = read_output(self.runtime, output)
            after = self._state(serial)
            levels = [state["throttled"] for state in (before, after)]
            hot = None if None in levels else max(levels) >= _MODERATE
            row.blocks.append(
                {
                    "p50_ms": told["p50_ms"] if told["p50_ms"] is not None else told["mean_ms"],
                    "runs": int(told["runs"] or 0),
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

    def _command(self, home: str, row: _Row, request: Mapping[str, Any]) -> str:
        program, seconds = f"{home}/{shlex.quote(self.program.name)}", request["block_s"]
        model = shlex.quote(row.path)
        if self.runtime == "litert":
            return (
                f"{program} --graph={model} --num_threads={row.threads} --num_runs={request['least_runs']} "
                f"--min_secs={seconds:g} --warmup_runs=1 --warmup_min_secs=0 --report_peak_memory_footprint=true"
            )
        return (
            f"LD_LIBRARY_PATH={home} {program} -I -s -e cpu -x {row.threads} -y 1 -m duration "
            f"-t {max(1, round(seconds))} {model}"
        )

    def _state(self, serial: str) -> Json:
        cpu = "/sys/devices/system/cpu/cpu0/cpufreq"
        _, told = self.phone.shell(
            serial,
            f"dumpsys thermalservice; echo @governor; cat {cpu}/scaling_governor; echo @clock; "
            f"cat {cpu}/scaling_cur_freq; echo @load; cat /proc/loadavg; true",
        )
        thermal, _, rest = told.partition("@governor")
        governor, _, rest = rest.partition("@clock")
        clock, _, load = rest.partition("@load")
        status = re.search(r"^Thermal Status: (\d{1,2})\b", thermal, re.MULTILINE)
        heat = [float(value) for value in re.findall(r"mValue=(\d+(?:\.\d+)?), mType=0\b", thermal)]
        name, khz = governor.strip(), _first_number(clock)
        return {
            "governor": name if re.fullmatch(r"[a-z_]{1,30}", name) else None,
            "clock_mhz": None if khz is None else khz / 1e3,
            "temperature_c": max(heat, default=None),
            "throttled": None if status is None else int(status[1]),
            "load": _first_number(load),
        }

    def _describe(self, serial: str) -> Json:
        _, told = self.phone.shell(
            serial,
            "getprop ro.product.manufacturer; getprop ro.product.model; getprop ro.soc.model; uname -m; uname -r; "
            "nproc; echo @; cat /proc/meminfo /proc/cpuinfo; true",
        )
        head, _, files = told.partition("@")
        maker, model, chip, machine, kernel, cores = [
            *(line.strip() for line in head.splitlines()),
            *[""] * 6,
        ][:6]
        memory = re.search(r"^MemTotal:\s+(\d+) kB", files, re.MULTILINE)
        features = re.search(r"^(?:Features|flags)\s*:(.*)$", files, re.MULTILINE)
        return {
            "board": f"{maker} {model}".strip() or None,
            "cpu": chip or None,
            "cores": int(cores) if cores.isdecimal() else None,
            "features": sorted(features[1].split()) if features else [],
            "machine": machine or "unknown",
            "kernel": kernel or "unknown",
            "python": "not used",
            "memory_mb": round(int(memory[1]) * 1024 / 1e6) if memory else None,
        }


def read_output(runtime: str, output: str) -> dict[str, float | None]:
    """Return what a benchmark program told, in ms and MB; None for what it did not tell.

    Raises `DeviceError` (18) if it told no times at all.
    """
    told = _litert_output(output) if runtime == "litert" else _onnxruntime_output(output)
    if told["mean_ms"] is None or not told["runs"]:
        raise DeviceError(
            f"the benchmark program told no times: {last_line(output)}",
            fix="run it by hand on the phone; its options may have changed",
        )
    return told


def _litert_output(output: str) -> dict[str, float | None]:
    """Read the second line of counts (the first is the warm-up) and the summary of `benchmark_model`."""
    counts = [line for line in output.splitlines() if re.search(r"\bcount=\d+ ", line)]
    last = counts[-1] if counts else ""

    def figure(name: str, text: str, scale: float) -> float | None:
        found = re.search(rf"{name}{_NUMBER}", text)
        return None if found is None else float(found[1]) * scale

    us = 1e-3
    mean = figure(r"\bavg=", last, us)
    only = figure(r"\bcurr=", last, us)
    return {
        "version": None,
        "load_ms": figure(r"timings in us: Init: ", output, us),
        "first_ms": figure(r"First inference: ", output, us),
        "p50_ms": figure(r"\bmedian=", last, us),
        "p90_ms": None,
        "p99_ms": None,
        "mean_ms": mean if mean is not None else only,
        "std_ms": figure(r"\bstd=", last, us),
        "runs": figure(r"\bcount=", last, 1.0),
        "peak_rss_mb": figure(
            r"Overall peak memory footprint \(MB\) via periodic monitoring: ", output, 1.048576
        ),
    }


def _onnxruntime_output(output: str) -> dict[str, float | None]:
    """Read the summary of `onnxruntime_perf_test`, which is in seconds but for the average."""

    def figure(name: str, scale: float = 1e3) -> float | None:
        found = re.search(rf"^{name}: {_NUMBER}", output, re.MULTILINE)
        return None if found is None else float(found[1]) * scale

    return {
        "version": None,
        "load_ms": figure("Session creation time cost"),
        "first_ms": figure("First inference time cost", 1.0),
        "p50_ms": figure("P50 Latency"),
        "p90_ms": figure("P90 Latency"),
        "p99_ms": figure("P99 Latency"),
        "mean_ms": figure("Average inference time cost(?: total)?", 1.0),
        "std_ms": None,
        "runs": figure("(?:Runs|Total inference requests)", 1.0),
        "peak_rss_mb": figure("Peak working set size", 1e-6),
    }


def _measurement(row: _Row, runtime: str) -> Json:
    """Return one row's figures: medians over its blocks, which are None if every block was hot."""

    def middle(key: str) -> float | None:
        values = [block[key] for block in row.told]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    medians = [block["p50_ms"] for block in row.blocks if block["counted"]]
    mean, states = middle("mean_ms"), [block["throttled"] for block in row.blocks]
    return {
        "file": row.entry["file"],
        "artifact": row.entry["artifact"],
        "runtime": runtime,
        "version": "of the given program",
        "threads": row.threads,
        **{key: middle(key) for key in ("load_ms", "first_ms", "p90_ms", "p99_ms", "std_ms", "peak_rss_mb")},
        "p50_ms": middle("p50_ms"),
        "mean_ms": mean,
        "per_second": 1e3 / mean if mean else None,
        "instructions_m": None,
        "runs": sum(int(block["runs"] or 0) for block in row.told),
        "noise": (max(medians) - min(medians)) / statistics.median(medians) if len(medians) > 1 else None,
        "max_abs_error": None,
        "checked": False,
        "throttled": None if all(state is None for state in states) else any(states),
        "blocks": row.blocks,
    }


def _first_number(text: str) -> float | None:
    found = re.match(r"\s*(\d+(?:\.\d+)?)", text)
    return None if found is None else float(found[1])

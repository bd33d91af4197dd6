"""The program that runs on the device: it gets a model, measures it and leaves nothing behind.

It arrives on standard input together with the files, runs under any Python from 3.9 with numpy and a runtime, and
answers in lines of `EDGE1 {json}` on standard output; everything else there is noise and is ignored. Each model, runtime
and number of threads is loaded in a process of its own, and all of them are timed in blocks that take turns, so that
heat and other programs hit all alike. Around every block the board is asked whether it was throttled; a block that was
counts for nothing, and is repeated after a pause. To make an environment it runs `installer.py`, which then comes along.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn, cast

Json = dict[str, Any]
Say = Callable[[Json], None]

MARK = "EDGE1 "
BEAT_SECONDS = 3.0
SPARE_BYTES = 16_000_000
LITERT_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
COUNTER_MAGIC = 0x45444745
COUNTED_RUNS = (1, 2, 1, 2)
PROFILED_RUNS = (5, 50)
PROFILED_SECONDS = 2.0
RUNTIMES_OF = {"onnx": ("onnxruntime",), "ort": ("onnxruntime",), "tflite": ("litert",)}
ENDING = (signal.SIGTERM, signal.SIGHUP)
VCGENCMD_SECONDS = 5.0
THROTTLED_NOW = 0xF
THROTTLED_SINCE_BOOT = 0xF0000


class ProbeError(Exception):
    """Why nothing could be measured; `kind` is device, timeout or integrity."""

    def __init__(self, cause: str, fix: str, kind: str = "device") -> None:
        super().__init__(cause)
        self.event = {"event": "error", "kind": kind, "cause": cause, "fix": fix}


# -- what the board says of itself --


class Board:
    """The device's own figures, read below `root` (`/` but in tests); what it does not tell is None."""

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)
        self._is_mute = False

    def describe(self) -> Json:
        """Return what stays the same during a measurement."""
        cpus = [entry for entry in (self._text("proc/cpuinfo") or "").split("\n\n") if entry.strip()]
        told: dict[str, str] = {}
        for line in (line for entry in cpus for line in entry.splitlines()):
            key, _, value = line.partition(":")
            told.setdefault(key.strip().lower(), value.strip())
        memory = (self._text("proc/meminfo") or "").partition("MemTotal:")[2].split()
        return {
            "board": (self._text("proc/device-tree/model") or "").strip("\0 \n") or android_model(),
            "cpu": told.get("model name") or told.get("cpu part"),
            "cores": os.cpu_count(),
            "features": sorted((told.get("features") or told.get("flags") or "").split()),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "memory_mb": round(int(memory[0]) * 1024 / 1e6) if memory else None,
        }

    def state(self) -> Json:
        """Return what may change from block to block: clock, governor, temperature, throttling."""
        clock = self._number("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        heat = self._number("sys/class/thermal/thermal_zone0/temp")
        return {
            "governor": (self._text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "").strip()
            or None,
            "clock_mhz": None if clock is None else clock / 1e3,
            "temperature_c": None if heat is None else heat / 1e3,
            "throttled": self._throttled(),
            "load": load_average(),
        }

    def _throttled(self) -> int | None:
        """Return the bits of `vcgencmd get_throttled`, or None where there is none; one that hangs is not asked again."""
        command = shutil.which("vcgencmd")
        if command is None or self._is_mute:
            return None
        try:
            child = subprocess.Popen(
                [command, "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            try:
                return int(child.communicate(timeout=VCGENCMD_SECONDS)[0].strip().rpartition("=")[2], 16)
            except subprocess.TimeoutExpired:
                self._is_mute = True
                child.kill()  # and no wait: one that hangs in the firmware's driver cannot be killed
                return None
        except (OSError, ValueError):
            return None

    def _text(self, relative: str) -> str | None:
        try:
            return (self.root / relative).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def _number(self, relative: str) -> float | None:
        try:
            return float((self._text(relative) or "").strip())
        except ValueError:
            return None


def android_model() -> str | None:
    """Return maker and model of an Android phone, None elsewhere."""
    command = shutil.which("getprop")
    if command is None:
        return None
    told = []
    for name in ("manufacturer", "model"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            ran = subprocess.run(
                [command, "ro.product." + name], capture_output=True, text=True, timeout=10, check=False
            )
            told.append(ran.stdout.strip())
    return " ".join(told).strip() or None


def load_average() -> float | None:
    """Return the load of the last minute, None where the system keeps it to itself, as Android does."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def was_throttled(before: Json, after: Json) -> bool | None:
    """Return whether the clock was held back between two states; None where the board cannot say."""
    if before["throttled"] is None or after["throttled"] is None:
        return None
    held = (before["throttled"] | after["throttled"]) & THROTTLED_NOW
    newly = (after["throttled"] & ~before["throttled"]) & THROTTLED_SINCE_BOOT
    return bool(held or newly)


# -- one model in one runtime: the worker process --


def _pair_sums_saturate() -> bool:
    """Return whether this is an x86 without VNNI, where onnxruntime's uint8 × int8 sums saturate; ARM's never do."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not any(name in flags for name in ("avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"))


def _open_session(runtime: Any, path: str, options: Any) -> Any:
    """Return a session that computes as ARM does; where sums saturate, with unsigned weights or signed activations."""
    providers = ["CPUExecutionProvider"]
    if _pair_sums_saturate() and hasattr(options, "add_session_config_entry"):
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return runtime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's classes share no other base
            if "AddInitializedOrtValue" not in str(error):  # what onnxruntime 1.32 says of shared zero points
                raise
        options.add_session_config_entry("session.x64quantprecision", "0")
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return runtime.InferenceSession(path, options, providers=providers)


class OnnxModel:
    """A `.onnx` or `.ort` file in onnxruntime on the CPU, as an app would load it."""

    def __init__(self, path: str, threads: int, trace: str | None = None) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if trace is not None:
            options.enable_profiling, options.profile_file_prefix = True, trace
        self.version = runtime.__version__
        self._session = _open_session(runtime, str(path), options)
        self._outputs = [item.name for item in self._session.get_outputs()]

    def prepare(self, tensors: Json) -> Any:
        """Return `tensors` as `run` takes them."""
        return {item.name: tensors[item.name] for item in self._session.get_inputs()}

    def run(self, prepared: Any) -> Any:
        """Do what is timed."""
        return self._session.run(None, prepared)

    def named(self, results: Any) -> Json:
        """Return results by name."""
        return {name: results[index] for index, name in enumerate(self._outputs)}

    def trace(self) -> str:
        """Return the file that the runtime wrote about every operator, if it was made with `trace`."""
        return str(self._session.end_profiling())


class LitertModel:
    """A `.tflite` file in LiteRT, or the older tflite-runtime, on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        name, module = import_litert()
        from importlib.metadata import version

        self.version = version(name)
        self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        signatures = list(self._interpreter.get_signature_list())
        if len(signatures) == 1:
            runner = self._interpreter.get_signature_runner(signatures[0])
            self._inputs, self._outputs = runner.get_input_details(), runner.get_output_details()
        else:
            self._inputs = {item["name"]: item for item in self._interpreter.get_input_details()}
            self._outputs = {item["name"]: item for item in self._interpreter.get_output_details()}

    def prepare(self, tensors: Json) -> Any:
        """Return `tensors` as `run` takes them: by index, in the file's own dtype."""
        return [
            (detail["index"], tensors[name].astype(detail["dtype"])) for name, detail in self._inputs.items()
        ]

    def run(self, prepared: Any) -> Any:
        """Do what is timed."""
        for index, tensor in prepared:
            self._interpreter.set_tensor(index, tensor)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs.values()]

    def named(self, results: Any) -> Json:
        """Return results by name."""
        return {name: results[index] for index, name in enumerate(self._outputs)}


def import_litert() -> tuple[str, Any]:
    """Return the distribution and module of whichever LiteRT is installed."""
    for name in LITERT_MODULES:
        try:
            return name.partition(".")[0].replace("_", "-"), importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("neither ai-edge-litert nor tflite-runtime is installed")


def work() -> None:
    """Serve one model over standard input and output: `load`, then `block` as often as asked."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # runtimes write to standard output when they please
    model = feed = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "load":
                model, feed, answer = load(order)
            elif order["do"] == "count":
                answer = {"instructions": count(model, feed, order["counts"])}
            elif order["do"] == "profile":
                answer = {"nodes": profile(order, feed)}
            else:
                answer = {"times_us": block(model, feed, order["seconds"], order["runs"])}
        except Exception as error:  # noqa: BLE001 - the runtimes raise types of their own
            answer = {"failed": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}
        answer["peak_rss_mb"] = peak_rss_mb()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def load(order: Json) -> tuple[Any, Any, Json]:
    """Return the loaded model, the feed that is timed, and how long it took and how true it answers."""
    import numpy as np

    if order["runtime"] == "onnxruntime":
        importlib.import_module("onnxruntime")  # loading a model is timed, loading Python is not
        kind: type[OnnxModel | LitertModel] = OnnxModel
    else:
        import_litert()
        kind = LitertModel
    began = time.perf_counter_ns()
    model = kind(order["path"], order["threads"])
    loaded = time.perf_counter_ns()
    samples = [
        (
            {name: np.load(path, allow_pickle=False) for name, path in sample["inputs"].items()},
            {name: np.load(path, allow_pickle=False) for name, path in sample["outputs"].items()},
        )
        for sample in order["samples"]
    ]
    feed = model.prepare(samples[0][0])
    ready = time.perf_counter_ns()
    model.run(feed)
    first = time.perf_counter_ns()
    largest = 0.0
    for inputs, expected in samples:
        answers = model.named([np.array(value) for value in model.run(model.prepare(inputs))])
        for name, want in expected.items():
            if answers[name].shape != want.shape:
                raise ValueError(f"output {name} has shape {answers[name].shape}, {want.shape} was recorded")
            error = np.abs(answers[name].astype(np.float64) - want.astype(np.float64))
            # A NaN compares as within every tolerance; it must fail instead.
            largest = max(
                largest, float(error.max(initial=0.0)) if np.isfinite(error).all() else float("inf")
            )
    return (
        model,
        feed,
        {
            "version": model.version,
            "load_ms": (loaded - began) / 1e6,
            "first_ms": (first - ready) / 1e6,
            "max_abs_error": largest if largest != float("inf") else None,
        },
    )


def block(model: Any, feed: Any, seconds: float, runs: int) -> list[float]:
    """Return the microseconds of single inferences, for `seconds` or `runs` of them, whichever is later."""
    model.run(feed)  # the others had the caches meanwhile
    clock, run = time.perf_counter_ns, model.run
    times: list[float] = []
    end = clock() + int(seconds * 1e9)
    while len(times) < runs or clock() < end:
        began = clock()
        run(feed)
        times.append((clock() - began) / 1e3)
    return times


def profile(order: Json, feed: Any) -> list[Json]:
    """Return the microseconds of every operator of one inference, the first inference left out, as the runtime says."""
    model = OnnxModel(order["path"], order["threads"], order["trace"])
    end = time.perf_counter() + PROFILED_SECONDS
    runs = 0
    while runs < PROFILED_RUNS[0] or (runs < PROFILED_RUNS[1] and time.perf_counter() < end):
        model.run(feed)
        runs += 1
    path = Path(model.trace())
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    nodes: dict[str, Json] = {}
    ending = "_kernel_time"
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(ending):
            continue
        told = event["args"]
        name = event["name"][: -len(ending)]
        types = [kind for tensor in told.get("input_type_shape", []) for kind in tensor]
        node = nodes.setdefault(name, {"name": name, "op": told["op_name"], "inputs": types, "us": []})
        node["us"].append(event["dur"])
    for node in nodes.values():
        per_run = max(1, len(node["us"]) // runs)
        later = node["us"][per_run:] or node["us"]
        node["us"] = sum(later) / max(1, len(later) // per_run)
    return list(nodes.values())


def count(model: Any, feed: Any, path: str) -> list[float]:
    """Return the instructions of one inference, twice: each from two numbers of runs, so that all else subtracts."""
    model.run(feed)
    told = []
    for runs in COUNTED_RUNS:
        before = instructions(path)
        for _ in range(runs):
            model.run(feed)
        told.append(instructions(path) - before)
    return [
        (told[at + 1] - told[at]) / (COUNTED_RUNS[at + 1] - COUNTED_RUNS[at]) for at in range(0, len(told), 2)
    ]


def instructions(path: str) -> int:
    """Return how many instructions this process has executed, as the emulator's counter wrote it to `path`."""
    with contextlib.suppress(OSError):  # it is no such process group; the counter listens to the attempt
        os.getpriority(COUNTER_MAGIC, 0)
    return int.from_bytes(Path(path).read_bytes(), "little")


def peak_rss_mb() -> float | None:
    """Return the most resident memory this process has had; None where the kernel does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    told = status.partition("VmHWM:")[2].split()
    return int(told[0]) * 1024 / 1e6 if told else None


# -- the conversation --


class Speaker:
    """Lines to the host, whole ones, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, event: Json) -> None:
        """Send one event."""
        with self._lock:
            sys.stdout.write(MARK + json.dumps(event) + "\n")
            sys.stdout.flush()

    def beat(self) -> None:
        """Say for ever that this device lives; end the program if nobody listens."""
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                self.say({"event": "alive"})
            except OSError:
                os.kill(os.getpid(), signal.SIGTERM)
                return


def end_with_the_link() -> None:
    """End the program when the host's side of standard input closes: it went away."""
    while os.read(
        0, 4096
    ):  # not sys.stdin: a thread that waits in there holds its lock when the program ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def python(counts: str | None = None) -> list[str]:
    """Return the command of a Python here; under an emulator, which may count instructions into the file `counts`."""
    given = os.environ.get("EDGE_LAUNCHER" if counts is None else "EDGE_COUNTING")
    if given is None:
        return [sys.executable]
    return [part.replace("{counts}", str(counts)) for part in json.loads(given)]


def is_emulated() -> bool:
    """Return whether instructions are counted here, for one thread, and time means nothing."""
    return "EDGE_COUNTING" in os.environ


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


def receive(stream: IO[bytes], folder: Path, files: list[Json]) -> None:
    """Write the files that follow on `stream`, checking room and digests."""
    need, room = sum(item["bytes"] for item in files) + SPARE_BYTES, shutil.disk_usage(folder).free
    if room < need:
        raise ProbeError(
            f"{folder.parent} needs {need / 1e6:.0f} MB free, has {room / 1e6:.0f} MB",
            "free some, or set TMPDIR on the device to a larger disk",
        )
    try:
        for item in files:
            receive_one(stream, folder / item["path"], item)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        left = shutil.disk_usage(folder).free
        raise ProbeError(
            f"{folder.parent} filled up while files arrived: {need / 1e6:.0f} MB are needed, {room / 1e6:.0f} MB were "
            f"free, {left / 1e6:.0f} MB are left",
            "free some, or set TMPDIR on the device to a larger disk",
        ) from None


def receive_one(stream: IO[bytes], path: Path, item: Json) -> None:
    """Write the file that follows on `stream` to `path`, checking its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), item["bytes"]
    with path.open("wb") as out:
        while left:
            chunk = stream.read(min(left, 1 << 20))
            if not chunk:
                raise ProbeError("the link broke while {} was sent".format(item["path"]), "try again")
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if digest.hexdigest() != item["sha256"]:
        raise ProbeError("{} arrived with other bytes".format(item["path"]), "try again", "integrity")


def runtimes_here(wanted: list[str], folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of runtimes that can be imported, each in a process of its own, and why others cannot."""
    tries = {
        "onnxruntime": "import onnxruntime; print(onnxruntime.__version__)",
        "litert": "import probe; from importlib.metadata import version; print(version(probe.import_litert()[0]))",
    }
    found, missing = {}, {}
    for name in wanted:
        ran = subprocess.run(
            [*python(), "-c", "import numpy\n" + tries[name]],
            capture_output=True,
            text=True,
            cwd=str(folder),
            check=False,
        )
        if ran.returncode == 0:
            found[name] = (ran.stdout.strip().splitlines() or [""])[-1][:40]
        elif ran.returncode < 0:
            missing[name] = (
                f"importing it dies with signal {-ran.returncode}: its wheel is not for this processor"
            )
        else:
            missing[name] = (ran.stderr.strip().splitlines() or ["it cannot be imported"])[-1][:200]
    return found, missing


def start_workers(request: Json, folder: Path, say: Say) -> tuple[list[Worker], list[Json]]:
    """Return the workers that loaded their model, and why the others did not."""
    wanted = sorted({name for entry in request["artifacts"] for name in RUNTIMES_OF[entry["format"]]})
    if request["runtime"]:
        wanted = [name for name in wanted if name == request["runtime"]]
    found, missing = runtimes_here(wanted, folder)
    workers, skipped = [], []
    for entry in request["artifacts"]:
        for runtime in (name for name in RUNTIMES_OF[entry["format"]] if name in wanted):
            if runtime not in found:
                skipped.append({"file": entry["file"], "runtime": runtime, "why": missing[runtime]})
                continue
            for threads in [1] if is_emulated() else request["threads"]:
                say({"event": "step", "label": f"load {entry['file']}, threads: {threads}"})
                worker = Worker(folder, entry, runtime, threads)
                worker.facts = worker.ask(load_order(entry, runtime, threads, folder))
                if "failed" in worker.facts:
                    worker.close()
                    why, version = worker.facts["failed"], found[runtime]
                    skipped.append(
                        {"file": entry["file"], "runtime": runtime, "version": version, "why": why}
                    )
                    break
                workers.append(worker)
    return workers, skipped


def load_order(entry: Json, runtime: str, threads: int, folder: Path) -> Json:
    """Return what makes a worker load `entry`."""
    samples = [
        {
            part: {name: str(folder / path) for name, path in sample[part].items()}
            for part in ("inputs", "outputs")
        }
        for sample in entry["samples"]
    ]
    path = str(folder / entry["path"])
    return {"do": "load", "path": path, "runtime": runtime, "threads": threads, "samples": samples}


def time_in_turns(workers: list[Worker], request: Json, board: Board, say: Say) -> list[tuple[Worker, str]]:
    """Fill every worker's blocks; a worker that dies is returned with its reason."""
    failed: list[tuple[Worker, str]] = []
    for number in range(request["blocks"]):
        say({"event": "step", "label": f"block {number + 1} of {request['blocks']}"})
        # Back and forth: what slowly warms the board favours neither end of the list.
        for worker in workers if number % 2 == 0 else workers[::-1]:
            if any(worker is dead for dead, _ in failed):
                continue
            why = one_block(worker, request, board, say)
            if why:
                failed.append((worker, why))
    return failed


def one_block(worker: Worker, request: Json, board: Board, say: Say) -> str | None:
    """Time one block, again after a pause while the board is throttled; return why the worker failed, or None."""
    for attempt in range(1 + request["retries"]):
        if attempt:
            say({"event": "step", "label": "throttled: cooling for {:g} s".format(request["cool_s"])})
            time.sleep(request["cool_s"])
        before = board.state()
        answer = worker.ask({"do": "block", "seconds": request["block_s"], "runs": request["least_runs"]})
        if "failed" in answer:
            return str(answer["failed"])
        after = board.state()
        throttled = was_throttled(before, after)
        worker.facts["peak_rss_mb"] = answer["peak_rss_mb"]
        times = answer["times_us"]
        worker.blocks.append(
            {
                "p50_ms": statistics.median(times) / 1e3,
                "runs": len(times),
                "before": before,
                "after": after,
                "throttled": throttled,
                "counted": not throttled,
            }
        )
        if not throttled:
            worker.times.extend(times)
            return None
    return None


def count_all(workers: list[Worker], say: Say) -> list[tuple[Worker, str]]:
    """Fill every worker's instructions; a worker that dies is returned with its reason."""
    failed: list[tuple[Worker, str]] = []
    for worker in workers:
        say({"event": "step", "label": f"count instructions of {worker.entry['file']}"})
        answer = worker.ask({"do": "count", "counts": worker.counts})
        if "failed" in answer:
            failed.append((worker, answer["failed"]))
        else:
            worker.instructions = answer["instructions"]
            # Neither the emulator's clock nor its memory is the device's.
            worker.facts.update(load_ms=None, first_ms=None, peak_rss_mb=None)
    return failed


def profile_all(workers: list[Worker], folder: Path, say: Say) -> list[Json]:
    """Return a profile of every file in every runtime, with the number of threads that was fastest, or why there is none."""
    fastest: dict[tuple[str, str], Worker] = {}
    for worker in (one for one in workers if one.times):
        known = fastest.setdefault((worker.entry["file"], worker.runtime), worker)
        if statistics.median(worker.times) < statistics.median(known.times):
            fastest[worker.entry["file"], worker.runtime] = worker
    profiles = []
    for (file, runtime), worker in fastest.items():
        told: Json = {"file": file, "runtime": runtime, "threads": worker.threads, "nodes": [], "why": None}
        if runtime != "onnxruntime":
            told["why"] = "LiteRT's Python interpreter has no profiler"
        else:
            say({"event": "step", "label": f"profile {file}"})
            order = load_order(worker.entry, runtime, worker.threads, folder)
            answer = worker.ask({**order, "do": "profile", "trace": str(folder / "trace")})
            told["nodes"], told["why"] = answer.get("nodes", []), answer.get("failed")
        profiles.append(told)
    return profiles


def measurement(worker: Worker) -> Json:
    """Return one worker's figures; those of time are None if every block was throttled."""
    times = sorted(worker.times)
    counted = [item["p50_ms"] for item in worker.blocks if item["counted"]]

    def share(part: float) -> float | None:
        return times[min(len(times) - 1, int(part * len(times)))] / 1e3 if times else None

    return {
        "file": worker.entry["file"],
        "artifact": worker.entry["artifact"],
        "runtime": worker.runtime,
        "version": worker.facts["version"],
        "threads": worker.threads,
        "load_ms": worker.facts["load_ms"],
        "first_ms": worker.facts["first_ms"],
        "p50_ms": statistics.median(times) / 1e3 if times else None,
        "p90_ms": share(0.9),
        "p99_ms": share(0.99),
        "mean_ms": statistics.fmean(times) / 1e3 if times else None,
        "std_ms": statistics.pstdev(times) / 1e3 if times else None,
        "per_second": len(times) / (sum(times) / 1e6) if times else None,
        "instructions_m": statistics.fmean(worker.instructions) / 1e6 if worker.instructions else None,
        "runs": len(times),
        "noise": (max(counted) - min(counted)) / statistics.median(counted) if len(counted) > 1 else None,
        "peak_rss_mb": worker.facts["peak_rss_mb"],
        "max_abs_error": worker.facts["max_abs_error"],
        "throttled": None
        if all(item["throttled"] is None for item in worker.blocks)
        else any(item["throttled"] for item in worker.blocks),
        "blocks": worker.blocks,
    }


def measure(request: Json, folder: Path, say: Say) -> Json:
    """Return the result of the whole request."""
    board = Board(os.environ.get("EDGE_ROOT") or request["root"])
    workers, skipped = start_workers(request, folder, say)
    try:
        failed = count_all(workers, say) if is_emulated() else time_in_turns(workers, request, board, say)
        skipped += [
            {"file": worker.entry["file"], "runtime": worker.runtime, "why": why} for worker, why in failed
        ]
        dead = [worker for worker, _ in failed]
        alive = [worker for worker in workers if not any(worker is one for one in dead)]
        measured = [measurement(worker) for worker in alive]
        profiles = profile_all(alive, folder, say) if request.get("profile") else []
    finally:
        for worker in workers:
            worker.close()
    return {"device": board.describe(), "measurements": measured, "skipped": skipped, "profiles": profiles}


def answer(request: Json, folder: Path, say: Say) -> Json:
    """Return what the request asks for: a measurement, or what the installer that came with it does."""
    if request.get("do", "measure") == "measure":
        return measure(request, folder, say)
    sys.path.insert(0, str(folder))
    installed: Json = importlib.import_module("installer").serve(request, folder, say, ProbeError)
    return installed


def hold_signals() -> None:
    """Ignore what would end this program: it is ending."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def leave(*_: Any) -> NoReturn:
    """End with everything cleaned up, which no second signal may interrupt."""
    hold_signals()
    raise SystemExit(1)


def serve(source: bytes) -> int:
    """Answer one request from standard input; `source` is this program's own text."""
    speaker = Speaker()
    for number in ENDING:
        signal.signal(number, leave)
    folder, is_kept = None, False
    try:
        try:
            folder = Path(tempfile.mkdtemp(prefix="edge-export-"))
        except OSError as error:
            raise ProbeError(f"no temporary folder: {error}", "free some disk on the device") from None
        stream = sys.stdin.buffer
        request = json.loads(stream.read(int(stream.readline())))
        receive(stream, folder, request["files"])
        (folder / "probe.py").write_bytes(source)
        os.environ["TMPDIR"] = str(folder)  # runtimes leave files of their own in it
        threading.Thread(target=speaker.beat, daemon=True).start()
        threading.Thread(target=end_with_the_link, daemon=True).start()
        result = answer(request, folder, speaker.say)
        hold_signals()  # the host hangs up as soon as it has the answer
        is_kept = request.get("keep") is True
        if is_kept:
            result["kept"] = str(folder)
            speaker.say({"event": "step", "label": f"kept: {folder}"})
        speaker.say({"event": "result", "result": result})
        return 0
    except ProbeError as error:
        speaker.say(error.event)
        return 1
    except OSError as error:
        speaker.say(
            {
                "event": "error",
                "kind": "device",
                "cause": str(error),
                "fix": "free disk or memory on the device",
            }
        )
        return 1
    finally:
        hold_signals()
        if folder is not None and not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work()

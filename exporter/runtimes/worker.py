"""Run one artifact on many inputs, and time it, in a child process: a crash or a leak stays there.

Inputs and outputs travel as folders of `.npz` files, one per sample (`00000.npz`, …), so that neither side
ever holds more than one sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from exporter.artifacts import Format, TensorSpec
from exporter.errors import UnsupportedError
from exporter.system.isolation import call_isolated

WARM_UP_RUNS = 3
TIMING_SECONDS = 1.0
MOST_TIMED_RUNS = 200

# What running a file needs, whichever its runtime: one warm process serves all. onnxruntime's telemetry would be a thread
# that no fork survives, and what a build measures is nobody else's business.
CHILD_LIBRARIES = ("numpy", "onnxruntime", "ai_edge_litert.interpreter")
CHILD_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1"}


class LoadedModel(Protocol):
    """A model that a runtime has loaded."""

    @property
    def name(self) -> str:
        """The runtime's name, such as "onnxruntime-cpu"."""

    @property
    def version(self) -> str:
        """The runtime's version."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the file takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the file answers."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return outputs by name."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a child measured: `outputs` is the folder of output samples, times are in milliseconds.

    `timings_ms` are single inferences on the first sample after warm-up; `load_ms` the time to load the file.
    """

    runtime: str
    version: str
    outputs: Path
    load_ms: float
    timings_ms: tuple[float, ...]
    peak_rss_mb: float


def open_model(path: Path, kind: Format, *, threads: int = 1) -> LoadedModel:
    """Return `path` loaded by the runtime of its format; `UnsupportedError` if none can run on this host."""
    match kind:
        case Format.ONNX | Format.ORT:
            from exporter.runtimes.onnxruntime_cpu import OnnxModel

            return OnnxModel(path, threads=threads)
        case Format.TFLITE:
            from exporter.runtimes.litert import LitertModel

            return LitertModel(path, threads=threads)
        case _:
            raise UnsupportedError(f"nothing on this host runs .{kind}", fix="run it on a Mac or an iPhone")


def run_artifact(
    path: Path, kind: Format, inputs: Path, outputs: Path, *, log: Path, timed: bool = True
) -> RunRecord:
    """Run `path` on every sample in the folder `inputs` and keep what it answers in `outputs`.

    Raises `InputError` for a file its runtime refuses, `InternalError` naming the signal if the runtime dies.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    request = {
        "path": str(path),
        "format": kind.value,
        "inputs": str(inputs),
        "outputs": str(outputs),
        "timed": timed,
    }
    result = call_isolated(
        "exporter.runtimes.worker:serve",
        request,
        stage="running",
        subject=path.name,
        log=log,
        timeout_s=3600,
        environment=CHILD_ENVIRONMENT,
        preload=CHILD_LIBRARIES,
    )
    value = result.value
    return RunRecord(
        value["runtime"],
        value["version"],
        outputs,
        value["load_ms"],
        tuple(value["timings_ms"]),
        result.peak_rss_mb,
    )


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side of `run_artifact`."""
    started = time.perf_counter()
    model = open_model(Path(request["path"]), Format(request["format"]))
    load_ms = 1e3 * (time.perf_counter() - started)
    first: dict[str, np.ndarray] | None = None
    for number, sample in enumerate(read_samples(Path(request["inputs"]))):
        first = sample if first is None else first
        write_sample(Path(request["outputs"]), number, model.run(sample))
    timings = _time(model, first) if request["timed"] and first is not None else []
    return {"runtime": model.name, "version": model.version, "load_ms": load_ms, "timings_ms": timings}


def _time(model: LoadedModel, sample: Mapping[str, np.ndarray]) -> list[float]:
    for _ in range(WARM_UP_RUNS):
        model.run(sample)
    timings: list[float] = []
    deadline = time.perf_counter() + TIMING_SECONDS
    while len(timings) < MOST_TIMED_RUNS and (len(timings) < 5 or time.perf_counter() < deadline):
        before = time.perf_counter()
        model.run(sample)
        timings.append(1e3 * (time.perf_counter() - before))
    return timings


def write_sample(folder: Path, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one sample as `folder/NNNNN.npz`."""
    np.savez(folder / f"{number:05d}.npz", **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]


def read_samples(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the samples of a folder in order."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}

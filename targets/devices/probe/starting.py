"""Which workers there are: for every file, runtime and number of threads one that has loaded it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from targets.devices.probe.events import Json, Say
from targets.devices.probe.launching import is_emulated, python
from targets.devices.probe.worker import Worker

RUNTIMES_OF = {"onnx": ("onnxruntime",), "ort": ("onnxruntime",), "tflite": ("litert",)}


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

"""One model in one runtime, loaded, timed from its first byte to its first answer, and compared with the build."""

from __future__ import annotations

import importlib
import time
from typing import Any

from targets.devices.probe.events import Json
from targets.devices.probe.litert_model import LitertModel, import_litert
from targets.devices.probe.onnx_model import OnnxModel


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

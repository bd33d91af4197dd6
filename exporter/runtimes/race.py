"""Time several files side by side, one inference of each in turn, so that the host's moods hit all alike.

A ratio of two latencies measured minutes apart says more of what else ran on the host than of the files.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import Format
from exporter.runtimes.worker import (
    CHILD_ENVIRONMENT,
    CHILD_LIBRARIES,
    open_model,
    read_samples,
    write_sample,
)
from exporter.system.isolation import call_isolated

_WARM_UP_ROUNDS = 3
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 300
_SECONDS = 2.0


def race(
    files: Sequence[tuple[Path, Format]], feeds: Sequence[Mapping[str, np.ndarray]], folder: Path
) -> list[float]:
    """Return the median milliseconds of one inference of each file on its feeds, one thread, in turns.

    All files are loaded at once in a process of their own; `folder` is scratch. Raises what running an artifact
    raises.
    """
    samples = folder / "race"
    shutil.rmtree(samples, ignore_errors=True)  # an interrupted build may have left more of them
    samples.mkdir(parents=True)
    for number, sample in enumerate(feeds):
        write_sample(samples, number, sample)
    request = {
        "files": [str(path) for path, _ in files],
        "formats": [kind.value for _, kind in files],
        "samples": str(samples),
    }
    result = call_isolated(
        "exporter.runtimes.race:serve",
        request,
        stage="timing",
        subject=", ".join(path.name for path, _ in files),
        log=folder / "race.log",
        timeout_s=3600,
        environment=CHILD_ENVIRONMENT,
        preload=CHILD_LIBRARIES,
    )
    medians: list[float] = result.value["p50_ms"]
    return medians


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side of `race`."""
    models = [
        open_model(Path(path), Format(kind))
        for path, kind in zip(request["files"], request["formats"], strict=True)
    ]
    feeds = list(read_samples(Path(request["samples"])))
    timings: list[list[float]] = [[] for _ in models]
    deadline = time.perf_counter() + _SECONDS * len(models)
    for turn in range(_WARM_UP_ROUNDS + _MOST_ROUNDS):
        for model, sample, taken in zip(models, feeds, timings, strict=True):
            before = time.perf_counter()
            model.run(sample)
            if turn >= _WARM_UP_ROUNDS:
                taken.append(1e3 * (time.perf_counter() - before))
        if turn >= _WARM_UP_ROUNDS + _LEAST_ROUNDS and time.perf_counter() > deadline:
            break
    return {"p50_ms": [statistics.median(taken) for taken in timings]}

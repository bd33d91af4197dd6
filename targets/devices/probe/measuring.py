"""The whole measurement: start, time or count, profile, sum up."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from targets.devices.probe.board import Board
from targets.devices.probe.events import Json, Say
from targets.devices.probe.launching import is_emulated
from targets.devices.probe.starting import load_order, start_workers
from targets.devices.probe.turns import time_in_turns
from targets.devices.probe.worker import Worker


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

"""All workers, timed in blocks that take turns."""

from __future__ import annotations

import statistics
import time

from targets.devices.probe.board import Board
from targets.devices.probe.events import Json, Say
from targets.devices.probe.throttling import was_throttled
from targets.devices.probe.worker import Worker


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

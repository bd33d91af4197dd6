"""The worker process: one model in one runtime with one number of threads."""

from __future__ import annotations

import json
import os
import sys

from targets.devices.probe.counting import count
from targets.devices.probe.loading import load
from targets.devices.probe.memory import peak_rss_mb
from targets.devices.probe.profiling import profile
from targets.devices.probe.timing import block


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

"""How long every operator of an inference takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from targets.devices.probe.events import Json
from targets.devices.probe.onnx_model import OnnxModel

PROFILED_RUNS = (5, 50)
PROFILED_SECONDS = 2.0


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

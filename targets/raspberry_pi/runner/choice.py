"""Which of the bundle's models to run."""

from __future__ import annotations

from pathlib import Path

from targets.raspberry_pi.runner.bundle import BUNDLE, Json, read_json
from targets.raspberry_pi.runner.errors import ModelError

SUFFIXES = {"onnxruntime": (".onnx", ".ort"), "litert": (".tflite",)}


def choose(entries: list[Json], name: str | None, runtime: str | None = None) -> list[Json]:
    """Return the entries to run, preferred first: all, or those called `name`, and of them those that `runtime` takes."""
    chosen = entries
    if name is not None:
        chosen = [entry for entry in entries if entry["file"] == Path(name).name or entry["artifact"] == name]
        if not chosen:
            raise ModelError(
                "E-usage",
                2,
                f"the bundle has no model {name!r}",
                f"use one of {', '.join(e['file'] for e in entries)}",
            )
    if runtime is None:
        return chosen
    if runtime not in SUFFIXES:
        raise ModelError(
            "E-usage", 2, f"there is no runtime {runtime!r}", f"use one of {', '.join(sorted(SUFFIXES))}"
        )
    taken = [entry for entry in chosen if entry["file"].endswith(SUFFIXES[runtime])]
    if not taken:
        files = ", ".join(entry["file"] for entry in chosen)
        raise ModelError(
            "E-usage", 2, f"{runtime} does not take {files}", "use the other runtime, or another model"
        )
    return taken


def fastest_first(entries: list[Json]) -> list[Json]:
    """Return `entries` with the file first that was fastest on a board like this one, if one was measured."""
    board = board_model()
    for path in sorted((BUNDLE / "measured").glob("*.json")):
        record = read_json(path)
        fastest = record.get("fastest")
        if fastest and record.get("device", {}).get("board") == board:
            return sorted(entries, key=lambda entry: entry["file"] != fastest["file"])
    return entries


def board_model() -> str | None:
    """Return the model of this board as its device tree names it; None where there is none."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0 \n") or None
    except (OSError, UnicodeDecodeError):
        return None

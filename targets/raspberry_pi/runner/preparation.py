"""Golden pictures and golden tensors, compared: this script's own preparation, and somebody else's."""

from __future__ import annotations

import importlib
from pathlib import Path

from targets.raspberry_pi.runner.bundle import Json, golden_file, golden_tensor, read_golden, read_tensor
from targets.raspberry_pi.runner.errors import ModelError
from targets.raspberry_pi.runner.mistakes import name_mistake
from targets.raspberry_pi.runner.pictures import picture_tensor


def replay_pictures(golden: Json, contract: Json) -> Json:
    """Return whether every golden picture gives its golden tensor here, and the cause where one does not."""
    listed = [
        (number, name, file)
        for number, sample in enumerate(golden["samples"])
        for name, file in sample.get("raw", {}).items()
    ]
    if not listed or contract.get("kind") != "image":
        return _pictures(0, None, None, "not replayed from pictures: the bundle holds none")
    try:
        importlib.import_module("PIL.Image")
    except ImportError:
        return _pictures(0, None, None, "not replayed from pictures: Pillow is not installed")
    for number, name, file in listed:
        expected = golden_tensor(golden["samples"][number]["inputs"][name])
        code, says = name_mistake(expected, picture_tensor(golden_file(file), contract), contract)
        if code != "ok":
            return _pictures(len(listed), False, code, f"sample {number}, {file}: {says}")
    return _pictures(len(listed), True, None, f"{len(listed)} golden pictures give their golden tensors")


def _pictures(samples: int, passed: bool | None, cause: str | None, says: str) -> Json:
    return {"samples": samples, "passed": passed, "cause": cause, "says": says}


def check_tensor(path: Path, number: int, contract: Json) -> Json:
    """Return what is wrong with a tensor that somebody's own code prepared from golden picture `number`."""
    samples = read_golden()["samples"]
    if contract.get("kind") != "image":
        raise ModelError(
            "E-unsupported",
            12,
            "this model's bundle describes no preprocessing",
            "compare it with golden/ by hand",
        )
    if not 0 <= number < len(samples):
        raise ModelError(
            "E-usage", 2, f"there is no sample {number}", f"use --sample 0 to {len(samples) - 1}"
        )
    inputs = samples[number]["inputs"]
    if len(inputs) != 1:
        raise ModelError(
            "E-unsupported", 12, f"the model takes {len(inputs)} inputs", "compare them with golden/ by hand"
        )
    (golden,) = inputs.values()
    if not path.is_file():
        raise ModelError("E-input", 10, f"{path} does not exist or is no file", "check the path")
    tensor = read_tensor(path)
    if tensor.dtype.kind not in "fiub":
        raise ModelError(
            "E-input", 10, f"{path} holds {tensor.dtype}, not numbers", "save the tensor as float32"
        )
    code, says = name_mistake(golden_tensor(golden), tensor, contract)
    return {
        "format": 1,
        "sample": number,
        "passed": code == "ok",
        "cause": None if code == "ok" else code,
        "says": says,
    }

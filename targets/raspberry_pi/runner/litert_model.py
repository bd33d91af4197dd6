"""LiteRT files, in whichever of its two interpreters is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from targets.raspberry_pi.runner.errors import ModelError

LITERT_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class LiteRtModel:
    """One `.tflite` file in LiteRT (or the older tflite-runtime) on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        name, module = _litert()
        self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self.runtime = f"{name} {_version(name)}".strip()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self._input_names, self._output_names = self._names()

    def run(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in signature order for inputs in signature order, int8 ones as float."""
        for detail, tensor in zip(self._inputs, tensors, strict=True):
            if tuple(detail["shape"]) != tensor.shape:
                raise ModelError(
                    "E-input",
                    10,
                    f"input {detail['name']} takes shape {list(map(int, detail['shape']))}, "
                    f"not {list(tensor.shape)}",
                    "give that shape; a .tflite file is of fixed shape",
                )
            self._interpreter.set_tensor(detail["index"], _to_storage(tensor, detail))
        self._interpreter.invoke()
        return [_from_storage(self._interpreter.get_tensor(item["index"]), item) for item in self._outputs]

    def signature(self) -> tuple[list[str], list[str]]:
        """Return the input and output names of the file's signature (or of its tensors, if it has none)."""
        return self._input_names, self._output_names

    def _names(self) -> tuple[list[str], list[str]]:
        signatures = self._interpreter.get_signature_list()
        if len(signatures) != 1:
            return [item["name"] for item in self._inputs], [item["name"] for item in self._outputs]
        runner = self._interpreter.get_signature_runner(next(iter(signatures)))
        inputs = {int(item["index"]): name for name, item in runner.get_input_details().items()}
        outputs = {int(item["index"]): name for name, item in runner.get_output_details().items()}
        return (
            [inputs.get(int(item["index"]), item["name"]) for item in self._inputs],
            [outputs.get(int(item["index"]), item["name"]) for item in self._outputs],
        )


def _litert() -> tuple[str, Any]:
    for name in LITERT_MODULES:
        try:
            return name.partition(".")[0].replace("_", "-"), importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(LITERT_MODULES[0])


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _to_storage(tensor: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(detail["dtype"], np.integer) and np.issubdtype(tensor.dtype, np.floating):
        limits = np.iinfo(detail["dtype"])
        levels: np.ndarray = np.clip(np.rint(tensor / scale) + zero_point, limits.min, limits.max)
        return levels.astype(detail["dtype"])
    # LiteRT files take int32 tokens where the original model took int64.
    return np.ascontiguousarray(tensor.astype(detail["dtype"], copy=False))


def _from_storage(tensor: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(detail["dtype"], np.integer):
        tensor = (tensor.astype(np.float32) - zero_point) * np.float32(scale)
    return tensor

"""LiteRT files, in whichever of its two interpreters is installed."""

from __future__ import annotations

import importlib
from typing import Any

from targets.devices.probe.events import Json

LITERT_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class LitertModel:
    """A `.tflite` file in LiteRT, or the older tflite-runtime, on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        name, module = import_litert()
        from importlib.metadata import version

        self.version = version(name)
        self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        signatures = list(self._interpreter.get_signature_list())
        if len(signatures) == 1:
            runner = self._interpreter.get_signature_runner(signatures[0])
            self._inputs, self._outputs = runner.get_input_details(), runner.get_output_details()
        else:
            self._inputs = {item["name"]: item for item in self._interpreter.get_input_details()}
            self._outputs = {item["name"]: item for item in self._interpreter.get_output_details()}

    def prepare(self, tensors: Json) -> Any:
        """Return `tensors` as `run` takes them: by index, in the file's own dtype."""
        return [
            (detail["index"], tensors[name].astype(detail["dtype"])) for name, detail in self._inputs.items()
        ]

    def run(self, prepared: Any) -> Any:
        """Do what is timed."""
        for index, tensor in prepared:
            self._interpreter.set_tensor(index, tensor)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs.values()]

    def named(self, results: Any) -> Json:
        """Return results by name."""
        return {name: results[index] for index, name in enumerate(self._outputs)}


def import_litert() -> tuple[str, Any]:
    """Return the distribution and module of whichever LiteRT is installed."""
    for name in LITERT_MODULES:
        try:
            return name.partition(".")[0].replace("_", "-"), importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("neither ai-edge-litert nor tflite-runtime is installed")

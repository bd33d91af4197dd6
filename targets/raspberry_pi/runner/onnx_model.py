"""ONNX files, in onnxruntime."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np


class OnnxModel:
    """One `.onnx` or `.ort` file in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # int8 activations stay int8 on desktops too, as on ARM: an x86 without VNNI saturates the sums of uint8 otherwise.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        self.runtime = f"onnxruntime-cpu {runtime.__version__}"
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in signature order for inputs in signature order."""
        feed = dict(zip(self._inputs, tensors, strict=True))
        outputs: list[np.ndarray] = self._session.run(self._outputs, feed)
        return outputs

    def signature(self) -> tuple[list[str], list[str]]:
        """Return the input and output names that the file itself uses."""
        return self._inputs, self._outputs

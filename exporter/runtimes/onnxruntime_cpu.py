"""Run `.onnx` and `.ort` files under onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import InputError, first_line
from exporter.runtimes.sessions import open_session, refusals

RUNTIME_NAME = "onnxruntime-cpu"

_NUMPY_OF_ORT = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxModel:
    """One model loaded by onnxruntime at its default optimisation level, as an app would load it."""

    name = RUNTIME_NAME

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load `path`; `InputError` says what onnxruntime found wrong with it."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.version = str(ort.__version__)
        try:
            self._session = open_session(str(path), options)
        except refusals() as error:
            raise InputError(
                f"onnxruntime {ort.__version__} cannot load {path}: {first_line(error)}", fix="rebuild it"
            ) from error
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name for `feeds`; `InputError` names an input of the wrong kind."""
        wanted = {spec.name: feeds[spec.name] for spec in self.inputs if spec.name in feeds}
        try:
            results = self._session.run(None, wanted)
        except refusals() as error:
            raise InputError(
                f"onnxruntime refused to run the model: {first_line(error)}",
                fix="check names, shapes and dtypes",
            ) from error
        return {spec.name: np.asarray(result) for spec, result in zip(self.outputs, results, strict=True)}


def _spec(value: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape)
    return TensorSpec(value.name, _NUMPY_OF_ORT.get(value.type, value.type), shape)

"""Run a `.tflite` with LiteRT's interpreter and XNNPACK, as a phone or a Raspberry Pi does.

A malformed file can kill the process it is loaded in: validation calls this in a child (`exporter.system.isolation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.arrays import Array
from exporter.artifacts import TensorSpec
from exporter.errors import InputError, UnsupportedError, first_line
from exporter.system import files

RUNTIME_NAME = "litert-xnnpack"
_FILE_IDENTIFIER = b"TFL3"


class LitertModel:
    """A loaded `.tflite`: `inputs` and `outputs` as the file has them, and `run`."""

    name = RUNTIME_NAME

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load `path`; `InputError` if it is missing, truncated or not a `.tflite`, `UnsupportedError` for
        an operator this LiteRT does not know.
        """
        self._path = files.require_file(path, what=".tflite file")
        _check_identifier(path)
        self._runner = _load(path, threads)
        self.inputs = _specs(self._runner.get_input_details())
        self.outputs = _specs(self._runner.get_output_details())

    @property
    def version(self) -> str:
        """Version of the runtime package."""
        from importlib.metadata import version

        return version("ai-edge-litert")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for one set of inputs, by signature name.

        Integers are narrowed to what the file takes (int64 tokens to int32) and floats rounded; `InputError`
        for a missing or unknown input, another shape, another kind of number, or a token beyond int32.
        """
        expected = {spec.name: spec for spec in self.inputs}
        if unknown := sorted(set(feeds) - set(expected)):
            raise InputError(
                f"{self._path.name} has no input {unknown[0]!r}", fix=f"its inputs are {', '.join(expected)}"
            )
        prepared = {name: _prepare(self._path.name, spec, feeds.get(name)) for name, spec in expected.items()}
        # A signature runner returns views of tensors that the next run overwrites.
        return {name: np.array(values) for name, values in self._runner(**prepared).items()}


def _check_identifier(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(8)
    if head[4:8] != _FILE_IDENTIFIER:
        raise InputError(
            f"{path} is not a .tflite: bytes 4 to 8 are {head[4:8]!r}, expected {_FILE_IDENTIFIER!r}",
            fix="copy or build the file again",
        )


def _load(path: Path, threads: int) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UnsupportedError(
            "running a .tflite needs ai-edge-litert, which is not installed",
            fix="pip install 'edge-exporter[litert]'",
        ) from error
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
        signatures = interpreter.get_signature_list()
        if len(signatures) != 1:
            raise InputError(
                f"{path} has {len(signatures)} signatures, expected one",
                fix="build the file with edge-export",
            )
        return interpreter.get_signature_runner(next(iter(signatures)))
    except (RuntimeError, ValueError) as error:
        line = first_line(error)
        if "Didn't find op" in line:
            raise UnsupportedError(
                f"{path} needs a newer LiteRT: {line}", fix="update ai-edge-litert, or use another scheme"
            ) from error
        raise InputError(f"{path} cannot be loaded: {line}", fix="copy or build the file again") from error


def _specs(details: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, np.dtype(detail["dtype"]).name, tuple(int(axis) for axis in detail["shape"]))
        for name, detail in details.items()
    )


def _prepare(file: str, spec: TensorSpec, values: Array | None) -> Array:
    if values is None:
        raise InputError(f"input {spec.name!r} of {file} is missing", fix="give an array for every input")
    if values.shape != spec.shape:
        raise InputError(
            f"input {spec.name!r} of {file} has shape {values.shape}, expected {spec.shape}",
            fix="a .tflite takes exactly the shape it was built for: split or pad the batch",
        )
    wanted = np.dtype(spec.dtype)
    if values.dtype.kind not in {wanted.kind, "u" if wanted.kind == "i" else wanted.kind}:
        raise InputError(
            f"input {spec.name!r} of {file} has dtype {values.dtype}, expected {wanted}",
            fix=f"convert it to {wanted} first",
        )
    if wanted.kind == "i" and values.size:
        limits = np.iinfo(wanted)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise InputError(
                f"input {spec.name!r} of {file} holds values beyond {wanted}",
                fix="check the tokens for overflow",
            )
    return np.ascontiguousarray(values, dtype=wanted)

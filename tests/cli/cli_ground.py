"""What tests of the command line stand on: a recipe, a small network, and fresh interpreters."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
[model]
name = "tiny"
version = "1.0.0"
factory = "net.py:build"
[[model.inputs]]
name = "image"
shape = ["batch", 1, 8, 8]
[data]
calibration = { source = "npz", path = "calibration.npz" }
[targets.android]
artifacts = ["onnx:static_wi8_ai8", "onnx:float32@fixed"]
[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8"]
"""


def make_tiny(axis: str = "batch", name: str = "image") -> onnx.ModelProto:
    """Return the model of `tiny_onnx` with its dynamic axis and its input called as asked."""
    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "matrix": generator.normal(size=(256, 10)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [name, "kernel"], ["mapped"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["mapped"], ["positive"]),
            helper.make_node("Flatten", ["positive"], ["flat"]),
            helper.make_node("Gemm", ["flat", "matrix"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [axis, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [axis, 10])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="tests"
    )


@contextlib.contextmanager
def python(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yield the process of `script`, in a fresh interpreter that finds the source tree from anywhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", script, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def run_python(script: str, *arguments: str) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of `script`."""
    with python(script, *arguments) as process:
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

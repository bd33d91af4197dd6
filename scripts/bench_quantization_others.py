"""What a user would quantise with instead: onnxruntime's own tools and NNCF. A program, run in a process of its own.

    python bench_quantization_others.py static MinMax FLOAT.onnx CALIBRATION.npz OUT.onnx [--transformer]

Settings are those their documentation recommends for a phone's CPU: QDQ, signed int8, weights per channel, after
onnxruntime's preprocessing. Prints one JSON object. Imports nothing of this project, because NNCF runs in an
environment of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("setting")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--transformer", action="store_true")
    given = parser.parse_args()
    with np.load(given.data, allow_pickle=False) as arrays:
        stacked = {name: arrays[name] for name in arrays.files}
    started = time.monotonic()
    METHODS[given.method](given, stacked)
    print(json.dumps({"seconds": time.monotonic() - started}))
    return 0


def samples_of(stacked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one sample after the other, each with a batch axis of 1."""
    count = len(next(iter(stacked.values())))
    for index in range(count):
        yield {name: array[index : index + 1] for name, array in stacked.items()}


def static(given: argparse.Namespace, stacked: dict[str, Any]) -> None:
    """Preprocess, then `quantize_static` with one calibration method."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = samples_of(stacked)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.samples, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(given.model), str(prepared), skip_symbolic_shape=given.transformer)
        quantize_static(
            str(prepared),
            str(given.out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[given.setting],
        )


def blocks(given: argparse.Namespace, _: dict[str, Any]) -> None:
    """Store weights of MatMul in four bits, round to nearest, as onnxruntime's own tool does by default."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(given.model), block_size=int(given.setting), accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(given.out), use_external_data_format=False)


def nncf(given: argparse.Namespace, stacked: dict[str, Any]) -> None:
    """`nncf.quantize` with its defaults, and the model type it asks for."""
    import nncf as tool
    import onnx

    samples = list(samples_of(stacked))
    made = tool.quantize(
        onnx.load(given.model),
        tool.Dataset(samples),
        subset_size=len(samples),
        model_type=tool.ModelType.TRANSFORMER if given.transformer else None,
    )
    onnx.save(made, given.out)


METHODS = {"static": static, "blocks": blocks, "nncf": nncf}

if __name__ == "__main__":
    raise SystemExit(main())

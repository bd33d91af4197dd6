"""Produce a `.tflite` (LiteRT) of fixed shapes from the exported torch program.

The parent's side: refuses what LiteRT cannot express, asks a child process for the work, and describes the
file it wrote. Imports no torch and no LiteRT.
"""

from __future__ import annotations

from typing import Any

from exporter.artifacts import Artifact, Coverage, LayerCoverage, TensorSpec, to_plain
from exporter.errors import InputError, UnsupportedError
from exporter.formats.base import ProduceRequest
from exporter.system import files
from exporter.system.converters.environment import own_environment
from exporter.system.isolation import call_isolated

STAGE = "produce"


def produce(request: ProduceRequest) -> Artifact:
    """Write `request.path` and return its description.

    Inputs and outputs are float32 at the boundary under every scheme, under the model's own names; token
    inputs of 64 bits become int32, and the artifact's specs say what the file takes.

    Raises `UnsupportedError` for a scheme LiteRT has no form of, for an operator litert-torch cannot lower and
    when nothing could be quantised; `InputError` when the model came without a torch program; `GateError`
    for non-finite weights or scales; `CalibrationError` for unusable samples.
    """
    _refuse(request)
    own = own_environment(request.spec.format)
    result = call_isolated(
        "exporter.formats.tflite.convert:convert",
        {
            "program": str(request.program),
            "path": str(request.path),
            "workdir": str(request.workdir),
            "samples": None if request.samples is None else str(request.samples),
            "scheme": str(request.spec.scheme),
            "rule": request.rule,
            "keep": list(request.keep),
            "onnx": str(request.onnx),
            "bits": dict(request.encodings.bits),
            "rounding": bool(request.encodings.blocks),
            "ranges": {name: list(span) for name, span in request.encodings.ranges.items()},
            "inputs": [to_plain(spec.fixed(request.axes)) for spec in request.inputs],
            "outputs": [to_plain(spec.fixed(request.axes)) for spec in request.outputs],
            "metadata": dict(request.metadata),
            "artifact": str(request.spec),
        },
        stage=STAGE,
        subject=str(request.spec),
        log=request.workdir / f"tflite-{request.spec.stem_suffix}.log",
        environment=CHILD_ENVIRONMENT | dict(own.variables if own else {}),
        preload=CHILD_LIBRARIES,
        python=own.python if own else None,
    )
    return Artifact(
        spec=request.spec,
        path=request.path,
        size_bytes=files.size_bytes(request.path),
        sha256=files.digest(request.path),
        inputs=_specs(result.value["inputs"]),
        outputs=_specs(result.value["outputs"]),
        coverage=Coverage(tuple(LayerCoverage(**layer) for layer in result.value["layers"])),
        notes=tuple(result.value["notes"]),
        seconds=result.seconds,
    )


# What the conversion imports before it can begin.
CHILD_LIBRARIES = (
    "litert_torch",
    "litert_quantizer.quantizer",
    "ai_edge_litert.interpreter",
    "onnxruntime",
    "onnxscript.optimizer",
)

# Threads and hash order must not reach the bytes; jax and the converter log to stderr otherwise. Telemetry would be a
# thread of onnxruntime's that no fork survives.
CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "ORT_DISABLE_TELEMETRY": "1",
}


def _refuse(request: ProduceRequest) -> None:
    scheme = request.spec.scheme
    if scheme.unsigned_activations:
        raise UnsupportedError(
            f"{request.spec}: LiteRT computes with signed int8 activations only",
            fix="use tflite:static_wi8_ai8",
        )
    if request.program is None:
        raise InputError(
            f"{request.spec} is converted from a torch program, and this model came as {request.onnx.name}",
            fix="give the recipe a torch factory, or leave the .tflite artifacts out",
        )
    if scheme.needs_calibration and request.samples is None:
        raise InputError(
            f"{request.spec} needs calibration samples", fix="set [data] calibration in the recipe"
        )


def _specs(plain: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in plain)

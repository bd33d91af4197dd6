"""Produce an `.mlpackage` (Core ML ML Program) of fixed shapes from the exported torch program.

The parent's side, like `tflite`: refuses what Core ML cannot express, asks a child process for the work, and
describes the folder it wrote. Imports no torch and no coremltools. Nothing here runs the model: only macOS can.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exporter.artifacts import Artifact, Coverage, Format, LayerCoverage, TensorSpec, to_plain
from exporter.errors import InputError, UnsupportedError
from exporter.formats.base import ProduceRequest
from exporter.schemes import Method, Scheme
from exporter.system import files
from exporter.system.converters.environment import own_environment
from exporter.system.isolation import call_isolated

STAGE = "produce"
NOT_RUN = (
    "Core ML runs on Apple systems only: the package's structure and its de-quantised weights were checked, "
    "its outputs were not"
)

# The package's bytes must not depend on hash order or on the number of threads.
CHILD_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
# What the conversion and the inspection import before they can begin.
CHILD_LIBRARIES = (
    "coremltools",
    "torch.export.pt2_archive",
    "torch._functorch.aot_autograd",
    "onnxruntime",
    "onnxscript.optimizer",
)

_FEATURE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def produce(request: ProduceRequest) -> Artifact:
    """Write the `.mlpackage` folder at `request.path` and return its description.

    Inputs and outputs are float32 at the boundary under every scheme, under the model's own names; token
    inputs of 64 bits become int32. int4 needs iOS 18, everything else iOS 16.

    Raises `UnsupportedError` for a scheme Core ML has no form of, a name it does not allow, or an operator that
    coremltools cannot convert; `InputError` when the model came without a torch program; `GateError` for a
    non-finite weight.
    """
    _refuse(request)
    own = own_environment(request.spec.format)
    result = call_isolated(
        "exporter.formats.mlpackage.convert:convert",
        {
            "program": str(request.program),
            "path": str(request.path),
            "scheme": str(request.spec.scheme),
            "keep": list(request.keep),
            "bits": dict(request.encodings.bits),
            "onnx": str(request.onnx),
            "samples": str(request.samples) if request.encodings.blocks and request.samples else None,
            "inputs": [to_plain(spec.fixed(request.axes)) for spec in request.inputs],
            "outputs": [to_plain(spec.fixed(request.axes)) for spec in request.outputs],
            "metadata": dict(request.metadata),
            "artifact": str(request.spec),
        },
        stage=STAGE,
        subject=str(request.spec),
        log=request.workdir / f"mlpackage-{request.spec.stem_suffix}.log",
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


def inspect_structure(path: Path, program: Path, *, log: Path) -> dict[str, Any]:
    """Return what can be checked of an `.mlpackage` without running it, JSON-ready.

    Operators with counts, inputs and outputs with types, specification version and minimum iOS, what the package says of
    itself (its contract among it), and every stored weight de-quantised and compared with the torch program's. `not_run`
    says what was not checked. `InputError` if `path` is not a readable package, `IntegrityError` for a damaged contract.
    """
    own = own_environment(Format.MLPACKAGE)
    return call_isolated(
        "exporter.formats.mlpackage.inspect:inspect",
        {"path": str(path), "program": str(program)},
        stage="validate",
        subject=path.name,
        log=log,
        environment=CHILD_ENVIRONMENT | dict(own.variables if own else {}),
        preload=CHILD_LIBRARIES,
        python=own.python if own else None,
    ).value


def _refuse(request: ProduceRequest) -> None:
    scheme = request.spec.scheme
    if reason := _unsupported(scheme):
        raise UnsupportedError(
            f"{request.spec}: {reason}", fix="use mlpackage:float16 or mlpackage:weight_only_wi8"
        )
    for spec in (*request.inputs, *request.outputs):
        if not _FEATURE_NAME.fullmatch(spec.name):
            raise UnsupportedError(
                f"{request.spec}: Core ML does not allow the name {spec.name!r}",
                fix="rename it to letters, digits and underscores in [[model.inputs]] or [[model.outputs]]",
            )
    if request.program is None:
        raise InputError(
            f"{request.spec} is converted from a torch program, and this model came as {request.onnx.name}",
            fix="give the recipe a torch factory, or leave the .mlpackage artifacts out",
        )


def _unsupported(scheme: Scheme) -> str:
    match scheme.method:
        case Method.STATIC:
            return "activations can be calibrated on macOS only"
        case Method.DYNAMIC:
            return "Core ML does not quantise activations at run time"
    return ""


def _specs(plain: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in plain)

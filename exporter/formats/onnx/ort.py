"""`.ort` files: the ONNX artifact as onnxruntime's own flatbuffer, optimised for ARM, for reduced builds.

A reduced ("minimal") onnxruntime build holds only the operators listed in `required_operators.config`,
which is written beside the file. This is the parent's side: `ort_convert` does the work in a child.
"""

from __future__ import annotations

import dataclasses
import time

from exporter.artifacts import Artifact, ArtifactSpec, Format
from exporter.errors import ResourceError
from exporter.formats.base import ProduceRequest
from exporter.formats.onnx import producer as onnx_file
from exporter.runtimes.worker import CHILD_ENVIRONMENT, CHILD_LIBRARIES
from exporter.system.files import digest, size_bytes
from exporter.system.isolation import call_isolated

FLATBUFFER_LIMIT_BYTES = 2**31
NOTABLE_GROWTH = 1.1
GROWTH_REASON = (
    "onnxruntime stores what it computed while it optimised (a tied table transposed, an integer weight as float) "
    "and the names it needs to do so again on the device"
)


def produce(request: ProduceRequest) -> Artifact:
    """Write the `.ort` artifact and its `required_operators.config`; raises what `.onnx` production raises."""
    started = time.monotonic()
    onnx_spec = ArtifactSpec(Format.ONNX, request.spec.scheme, request.spec.shapes)
    scratch = request.workdir / "ort"
    scratch.mkdir(parents=True, exist_ok=True)
    base = onnx_file.produce(dataclasses.replace(request, spec=onnx_spec, destination=scratch))
    if base.size_bytes >= FLATBUFFER_LIMIT_BYTES:
        raise ResourceError(
            f"{request.path.name} would hold {base.size_bytes} bytes, and an .ort file ends at 2 GiB",
            fix="use .onnx for this model",
        )
    operators = request.destination / f"{request.path.stem}.required_operators.config"
    call_isolated(
        "exporter.formats.onnx.ort_convert:convert",
        {"onnx": str(base.path), "ort": str(request.path), "operators": str(operators)},
        stage="conversion to ORT format",
        subject=request.path.name,
        log=request.workdir / "logs" / f"{request.path.name}.log",
        environment=CHILD_ENVIRONMENT,
        preload=CHILD_LIBRARIES,
    )
    size = size_bytes(request.path)
    notes = base.notes
    if size > NOTABLE_GROWTH * base.size_bytes:
        notes = (*notes, f"{size / base.size_bytes:.2f} times the .onnx of the same scheme: {GROWTH_REASON}")
    return dataclasses.replace(
        base,
        spec=request.spec,
        path=request.path,
        size_bytes=size,
        notes=notes,
        sha256=digest(request.path),
        companions=(operators,),
        seconds=time.monotonic() - started,
    )

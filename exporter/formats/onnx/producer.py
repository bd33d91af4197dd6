"""`.onnx` files: the ONNX graph under a scheme, with named axes kept or fixed, and with its contract in `metadata_props`."""

from __future__ import annotations

import time

import onnx_ir as ir

from exporter.artifacts import Artifact, Shapes
from exporter.formats.base import ProduceRequest
from exporter.model.onnx_write import fix_axes, forget_inner_shapes, save_onnx, shorten_constant_names
from exporter.quantize.quantize import quantize
from exporter.system.files import digest, size_bytes


def produce(request: ProduceRequest) -> Artifact:
    """Write the `.onnx` artifact that `request` asks for and return it.

    Raises what `exporter.quantize.quantize.quantize` raises.
    """
    started = time.monotonic()
    model = ir.load(request.onnx)
    quantized, coverage = quantize(model, request.spec.scheme, encodings=request.encodings, axes=request.axes)
    fixed = request.spec.shapes is Shapes.FIXED
    if fixed:
        quantized = fix_axes(quantized, request.axes)
    if not request.spec.scheme.is_float:
        shorten_constant_names(forget_inner_shapes(quantized))
    quantized.metadata_props.update(sorted(request.metadata.items()))
    files = save_onnx(quantized, request.path)
    return Artifact(
        spec=request.spec,
        path=request.path,
        size_bytes=sum(size_bytes(file) for file in files),
        sha256=digest(request.path),
        inputs=tuple(spec.fixed(request.axes) if fixed else spec for spec in request.inputs),
        outputs=tuple(spec.fixed(request.axes) if fixed else spec for spec in request.outputs),
        coverage=coverage,
        companions=tuple(files[1:]),
        seconds=time.monotonic() - started,
    )

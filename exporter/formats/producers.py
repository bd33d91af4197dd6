"""One producer per file format: each turns a model into one kind of file."""

from __future__ import annotations

from exporter.artifacts import Artifact, Format
from exporter.formats.base import ProduceRequest


def produce(request: ProduceRequest) -> Artifact:
    """Return the artifact that `request` asks for, made by its format's producer."""
    match request.spec.format:
        case Format.ONNX:
            from exporter.formats.onnx import producer as onnx_file

            return onnx_file.produce(request)
        case Format.ORT:
            from exporter.formats.onnx import ort as ort_file

            return ort_file.produce(request)
        case Format.TFLITE:
            from exporter.formats.tflite import producer as tflite

            return tflite.produce(request)
        case Format.MLPACKAGE:
            from exporter.formats.mlpackage import producer as mlpackage

            return mlpackage.produce(request)

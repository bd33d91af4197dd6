"""What is known of each runtime, whichever target carries it: schemes, shapes, version limits, traps.

Data only; targets put these together. The figures come from the runtimes' documentation and from
measurements on onnxruntime 1.32, LiteRT 2.3 and coremltools 9; re-measure before changing one, and raise
the `version` of every target's capabilities that uses it.
"""

from __future__ import annotations

from exporter.artifacts import Format
from exporter.schemes import KNOWN_SCHEMES
from targets.base import Exclusion, RuntimeCapability

ALL_SCHEMES = frozenset(KNOWN_SCHEMES)
INT4_SCHEMES = frozenset({"weight_only_wi4_b32", "weight_only_wi4_b64", "weight_only_wi4_b128"})
SIGNED_SCHEMES = frozenset({"float32", "static_wi8_ai8", "dynamic_wi8_ai8", "weight_only_wi8"}) | INT4_SCHEMES

# onnxruntime's Maven and SwiftPM packages lag PyPI by several releases; onnx 1.23 by itself would write
# opset 28 and IR 14, which they refuse to load.
ONNX_MAX_OPSET = 21
ONNX_MAX_IR_VERSION = 10

FLOAT16_ON_CPU = "onnxruntime emulates float16 on CPUs, slower than float32"


def onnxruntime_cpu(file_format: Format) -> RuntimeCapability:
    """Return onnxruntime's CPU provider on ARM64, reading `.onnx` or `.ort` files."""
    return RuntimeCapability(
        runtime="onnxruntime-cpu",
        format=file_format,
        schemes=SIGNED_SCHEMES,
        max_opset=ONNX_MAX_OPSET,
        max_ir_version=ONNX_MAX_IR_VERSION,
        note="ARM64 is never slower with signed int8 activations than with unsigned ones",
    )


def onnxruntime_xnnpack(file_format: Format) -> RuntimeCapability:
    """Return onnxruntime's XNNPACK provider, which takes the CPU's own files when shapes are fixed."""
    return RuntimeCapability(
        runtime="onnxruntime-xnnpack",
        format=file_format,
        schemes=frozenset({"float32", "static_wi8_ai8"}),
        needs_fixed_shapes=True,
        max_opset=ONNX_MAX_OPSET,
        max_ir_version=ONNX_MAX_IR_VERSION,
        note="refuses unsigned activations; operators that it does not take stay on the CPU provider",
    )


ONNXRUNTIME_QNN = RuntimeCapability(
    runtime="onnxruntime-qnn",
    format=Format.ONNX,
    schemes=frozenset({"static_wi8_ai8_u"}),
    needs_fixed_shapes=True,
    max_opset=ONNX_MAX_OPSET,
    max_ir_version=ONNX_MAX_IR_VERSION,
    note="Snapdragon NPU; needs onnxruntime's QNN build and a file of its own with unsigned activations",
)

ONNXRUNTIME_COREML = RuntimeCapability(
    runtime="onnxruntime-coreml",
    format=Format.ONNX,
    schemes=frozenset({"float32"}),
    needs_fixed_shapes=True,
    max_opset=ONNX_MAX_OPSET,
    max_ir_version=ONNX_MAX_IR_VERSION,
    note="float only, ML Program format: a quantised graph falls apart into many small pieces",
)

LITERT_GPU = RuntimeCapability(
    runtime="litert-gpu",
    format=Format.TFLITE,
    schemes=frozenset({"float16", "float32"}),
    needs_fixed_shapes=True,
    note="float only, never int8; float16 halves the file",
)

LITERT_XNNPACK = RuntimeCapability(
    runtime="litert-xnnpack",
    format=Format.TFLITE,
    schemes=SIGNED_SCHEMES | {"float16"},
    needs_fixed_shapes=True,
    note="computes int8 with signed activations; widens float16 weights to float32 when it loads them",
)

UNSIGNED_TFLITE = Exclusion(
    Format.TFLITE, frozenset({"static_wi8_ai8_u"}), "LiteRT computes with signed int8 activations only"
)


def unsigned_on_arm64(file_format: Format) -> Exclusion:
    """Return the exclusion of unsigned activations where only an ARM64 CPU would run them."""
    return Exclusion(
        file_format,
        frozenset({"static_wi8_ai8_u"}),
        f"signed activations are never slower on ARM64; take {file_format}:static_wi8_ai8",
    )


def no_core_ml(platform: str) -> Exclusion:
    """Return the exclusion of `.mlpackage` files from a platform that is not Apple's."""
    return Exclusion(Format.MLPACKAGE, ALL_SCHEMES, f"Core ML runs on Apple's systems, not on {platform}")

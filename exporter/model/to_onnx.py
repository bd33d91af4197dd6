"""SourceModel → ONNX: torch's exporter at an opset that phones load, checked against torch on the spot."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporter.artifacts import Fidelity
from exporter.errors import GateError, UnsupportedError
from exporter.judging.metrics import compare_outputs
from exporter.model.capture import capture
from exporter.model.source import SourceModel

if TYPE_CHECKING:
    import torch

OPSET = 18
"""The newest opset that onnxruntime on phones has loaded for years, and the one torch writes natively."""
IR_VERSION = 8
"""The IR version that came with opset 18."""
PARITY_MIN_SQNR_DB = 60.0
"""Float graphs differ by rounding only: six digits of agreement, or the export is wrong."""


def to_onnx(source: SourceModel) -> ir.Model:
    """Return the float32 ONNX graph of `source`, inputs and outputs named as the recipe does.

    Raises `UnsupportedError` (12) naming the operator that has no ONNX form.
    """
    if source.onnx is not None:
        from exporter.model.onnx_read import read_onnx

        return _with_least_ir_version(ir.from_proto(read_onnx(source.onnx)))
    import torch

    program = capture(source, dynamic=any(isinstance(a, str) for spec in source.inputs for a in spec.shape))
    try:
        with _exporter_kept_quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in source.inputs],
                output_names=list(_output_names(source, program)),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(
            f"model {source.name} has no ONNX form: {_cause_of(error)}",
            fix="replace that operator in the model's code by ones ONNX has",
        ) from error
    if exported is None:
        raise UnsupportedError(f"torch exported nothing for {source.name}", fix="try a newer torch")
    model: ir.Model = exported.model
    model.ir_version = IR_VERSION
    return model


def _with_least_ir_version(model: ir.Model) -> ir.Model:
    """Declare the oldest IR version that the operators allow: runtimes refuse newer ones whatever they hold."""
    from onnx import helper

    opsets = [helper.make_opsetid("", model.opset_imports[""])]
    model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(opsets))
    return model


def _output_names(source: SourceModel, program: torch.export.ExportedProgram) -> Sequence[str]:
    count = len(program.graph_signature.user_outputs)
    if source.outputs and len(source.outputs) != count:
        raise UnsupportedError(
            f"model.outputs names {len(source.outputs)} outputs and the model returns {count}",
            fix="name each output once, in the order forward returns them",
        )
    if source.outputs:
        return source.outputs
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


@contextlib.contextmanager
def _exporter_kept_quiet() -> Iterator[None]:
    """Silence what torch's exporter says of packages that this model does not use (torchvision)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause_of(error: BaseException) -> str:
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    return (str(deepest).strip().splitlines() or [type(deepest).__name__])[0][:300]


def check_parity(
    source: SourceModel, onnx_path: Path, samples: Sequence[Mapping[str, np.ndarray]]
) -> Fidelity:
    """Return how close the ONNX file is to the torch module on `samples`; `GateError` below 60 dB.

    Each sample is run alone under onnxruntime and under torch.
    """
    from exporter.runtimes.onnxruntime_cpu import OnnxModel

    model = OnnxModel(onnx_path)
    names = [spec.name for spec in model.outputs]
    want = [dict(zip(names, source.forward(sample), strict=True)) for sample in samples]
    fidelity = compare_outputs(want, [model.run(sample) for sample in samples])
    if fidelity.sqnr_db < PARITY_MIN_SQNR_DB:
        raise GateError(
            f"the exported ONNX graph differs from torch: {fidelity.sqnr_db:.1f} dB SQNR, largest error "
            f"{fidelity.max_abs_error:.3g}, over {fidelity.samples} samples (floor {PARITY_MIN_SQNR_DB:.0f} dB)",
            fix="look for randomness or training-mode layers in forward; nothing was written",
        )
    return fidelity

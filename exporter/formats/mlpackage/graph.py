"""An ML Program as plain objects: its operators, stored weights, shapes and coverage.

Runs in a child process: it imports coremltools. Knows nothing of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.arrays import Array
from exporter.artifacts import Coverage, LayerCoverage
from exporter.errors import InputError

DATA_MOVEMENT = frozenset(
    {
        *(
            "cast",
            "reshape",
            "transpose",
            "squeeze",
            "expand_dims",
            "slice_by_index",
            "slice_by_size",
            "concat",
        ),
        *("split", "pad", "tile", "stack", "identity", "shape", "flatten2d", "pixel_shuffle"),
        *("depth_to_space", "space_to_depth"),
    }
)
# The operand that holds the weight, for each operator whose weight can be compressed.
WEIGHT_OPERANDS: dict[str, str] = {
    "conv": "weight",
    "conv_transpose": "weight",
    "linear": "weight",
    "matmul": "y",
    "gather": "x",
}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor stored in a package: its name, de-quantised float32 values, and how it is stored."""

    name: str
    values: Array
    stored: str


def read_spec(path: Path) -> Any:
    """Return the protobuf of a package; `InputError` if the folder is not a readable ML Program."""
    import coremltools
    from google.protobuf.message import DecodeError

    try:
        spec = coremltools.utils.load_spec(str(path))
    except (OSError, RuntimeError, ValueError, DecodeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} is not a readable .mlpackage: {line}", fix="copy or build it again"
        ) from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise InputError(f"{path} holds a {spec.WhichOneof('Type')}, not an ML Program", fix="build it again")
    return spec


def read_program(path: Path, spec: Any) -> Any:
    """Return coremltools' program (`mil.Program`) of a package, with weights read from its `weight.bin`."""
    from coremltools.converters.mil.frontend.milproto.load import load

    weights = path / "Data" / "com.apple.CoreML" / "weights"
    try:
        return load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights))
    except (OSError, RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} has unreadable weights: {line}", fix="copy or build it again") from error


def operations(program: Any) -> Iterator[Any]:
    """Yield the operators of `main` in order, without constants and their decompression."""
    for operation in program.functions["main"].operations:
        if operation.op_type != "const" and not operation.op_type.startswith("constexpr_"):
            yield operation


def operands(operation: Any) -> Iterator[Any]:
    """Yield the variables an operator reads, in the order of their names; tuples of variables flattened."""
    for _, value in sorted(operation.inputs.items()):
        yield from value if isinstance(value, (tuple, list)) else (value,)


def is_compressed(variable: Any) -> bool:
    """Whether a variable is a stored tensor behind a `constexpr_*` decompression."""
    return variable.op is not None and variable.op.op_type.startswith("constexpr_")


def is_stored_float(variable: Any) -> bool:
    """Whether a variable is a stored float tensor, compressed or not."""
    if variable.op is None or not (is_compressed(variable) or variable.op.op_type == "const"):
        return False
    return is_compressed(variable) or getattr(variable.val, "dtype", np.dtype(int)).kind == "f"


def stored_weights(program: Any) -> Iterator[StoredWeight]:
    """Yield every stored float tensor of two or more elements once, de-quantised."""
    seen: set[str] = set()
    for operation in operations(program):
        for variable in operands(operation):
            if not is_stored_float(variable) or variable.name in seen or math.prod(variable.shape) < 2:
                continue
            seen.add(variable.name)
            if is_compressed(variable):
                values, stored = variable.op.materialized_val_inference(), _storage(variable.op)
            else:
                values, stored = variable.val, str(variable.val.dtype)
            yield StoredWeight(variable.name, np.asarray(values, np.float32), stored)


def _storage(operation: Any) -> str:
    data = operation.inputs.get("quantized_data") or operation.inputs.get("data")
    if data is None:
        return str(operation.op_type)
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(data.dtype))


def coverage(program: Any, names: Callable[[Any], str], reasons: Mapping[str, str], default: str) -> Coverage:
    """Return which operators compute with compressed weights.

    `names` gives an operator's readable name; `reasons` says by Core ML name why a weight stayed float, and
    `default` why where nothing more is known.
    """
    layers: list[LayerCoverage] = []
    owned: set[str] = set()
    for operation in operations(program):
        if operation.op_type in DATA_MOVEMENT or not _is_float(operation):
            continue
        weights = [variable for variable in operands(operation) if is_stored_float(variable)]
        quantized = any(is_compressed(variable) for variable in weights)
        new = [variable for variable in weights if variable.name not in owned]
        owned.update(variable.name for variable in new)
        fallback = (
            default if operation.op_type in WEIGHT_OPERANDS and weights else "no stored weight to quantise"
        )
        reason = next((reasons[v.name] for v in weights if v.name in reasons), fallback)
        layers.append(
            LayerCoverage(
                name=names(operation),
                op=operation.op_type,
                quantized=quantized,
                macs=macs(operation),
                weight_bytes=4 * sum(math.prod(variable.shape) for variable in new),
                reason="" if quantized else reason,
            )
        )
    return Coverage(tuple(layers))


def macs(operation: Any) -> int:
    """Return the multiply-accumulates of one run of an operator, from its shapes; 0 where it has none."""
    results = math.prod(operation.outputs[0].shape)
    match operation.op_type:
        case "conv":
            return int(results * math.prod(operation.weight.shape[1:]))
        case "conv_transpose":
            return int(math.prod(operation.x.shape) * math.prod(operation.weight.shape[1:]))
        case "linear":
            return int(results * operation.weight.shape[-1])
        case "matmul":
            flipped = operation.transpose_x is not None and bool(operation.transpose_x.val)
            return int(results * operation.x.shape[-2 if flipped else -1])
    return 0


def _is_float(operation: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return any(types.is_float(variable.dtype) for variable in (*operands(operation), *operation.outputs))

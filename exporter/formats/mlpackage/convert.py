"""The child process of `mlpackage`: program → ML Program → compressed weights → a folder with canonical bytes."""

from __future__ import annotations

import fnmatch
import json
import math
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
from coremltools.converters.mil.mil.passes.graph_pass import PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.models.utils import _apply_graph_pass
from coremltools.optimize import coreml as compress

from exporter.artifacts import TensorSpec, to_plain
from exporter.errors import UnsupportedError
from exporter.formats.layer_names import CORE_ML_KINDS, is_onnx_layer
from exporter.formats.mlpackage.graph import (
    coverage,
    operands,
    read_program,
    read_spec,
)
from exporter.formats.mlpackage.metadata import write_metadata
from exporter.formats.mlpackage.program import Provenance, fold_constants, load_program, provenance
from exporter.formats.mlpackage.rounding import RoundFourBits, reduced_axis, weights
from exporter.formats.program import check_weights, specs_from_json
from exporter.schemes import Method, Scheme
from exporter.system import files

_NAMESPACE = uuid.UUID("7d0b0c5e-7f2f-5c55-9a3a-0d3b8b8e9f10")


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Write the package at `request["path"]` and return `{inputs, outputs, layers, notes}`, JSON-ready.

    `request` holds `program`, `path`, `scheme`, `keep`, `bits` (widths by ONNX name), `onnx` (the float graph) and
    `samples` (what int4 weights are rounded with, or null), `inputs` and `outputs` as lists of `{name, dtype, shape}` with
    fixed shapes, and `metadata` (texts by key) that the package carries as that of `artifact`.
    """
    scheme, keep = Scheme.parse(request["scheme"]), tuple(request["keep"])
    path, program = Path(request["path"]), Path(request["program"])
    with _scratch():
        exported = load_program(program)
        check_weights(exported, program)
        inputs, outputs = specs_from_json(request["inputs"]), specs_from_json(request["outputs"])
        model, exported = _to_ml_program(exported, inputs, outputs, scheme, program)
        names = provenance(exported)
        wishes = _Wishes(scheme, keep, request["bits"])
        samples = Path(request["samples"]) if request["samples"] else None
        model, reasons, notes = _compress(model, wishes, names, Path(request["onnx"]), samples)
        _write_package(model, path, request["metadata"], request["artifact"])
    spec = read_spec(path)
    default = "the weight's shape allows no block" if not scheme.is_float else f"the scheme is {scheme}"
    covered = coverage(read_program(path, spec), lambda op: _display(op, names), reasons, default)
    if not scheme.is_float and not covered.quantized_count:
        raise UnsupportedError(
            f"{path.name}: nothing could be quantised",
            fix="use mlpackage:float16, or look at the reason of each operator in the details",
            details={"left_float": covered.reasons()},
        )
    return {
        "inputs": features(spec.description.input),
        "outputs": features(spec.description.output),
        "layers": to_plain(covered.layers),
        "notes": notes,
    }


@contextmanager
def _scratch() -> Iterator[None]:
    """Send coremltools' temporary packages to a folder that is removed: the child skips its exit handlers."""
    previous = tempfile.tempdir
    with files.scratch_folder("coreml") as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = previous


def _to_ml_program(
    exported: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], scheme: Scheme, program: Path
) -> tuple[Any, Any]:
    """Return the converted model and the program it came from (with constants folded if it had to be)."""
    try:
        return _convert(exported, inputs, outputs, scheme), exported
    except (
        NotImplementedError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
    ):
        folded = fold_constants(exported)
    try:
        return _convert(folded, inputs, outputs, scheme), folded
    except (
        NotImplementedError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
        raise UnsupportedError(
            f"coremltools cannot convert {program.name}: {line.strip()[:300]}",
            fix="rewrite that operator in the model, or leave the .mlpackage artifacts out of the recipe",
        ) from error


def _convert(
    exported: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], scheme: Scheme
) -> Any:
    single = scheme.is_float and scheme.weight_bits == 32
    return coremltools.convert(
        exported,
        convert_to="mlprogram",
        inputs=[coremltools.TensorType(s.name, shape=s.shape, dtype=_boundary(s.dtype)) for s in inputs],
        outputs=[coremltools.TensorType(s.name, dtype=_boundary(s.dtype)) for s in outputs],
        # int4 in blocks is an iOS 18 operator; everything else here exists since iOS 16.
        minimum_deployment_target=coremltools.target.iOS18
        if scheme.weight_bits == 4
        else coremltools.target.iOS16,
        compute_precision=coremltools.precision.FLOAT32 if single else coremltools.precision.FLOAT16,
        skip_model_load=True,
    )


def _boundary(dtype: str) -> type:
    # Apps feed and read ordinary arrays; Core ML multi-arrays have neither int64 nor bool.
    return np.float32 if dtype.startswith("float") else np.int32


@dataclass(frozen=True, slots=True)
class _Wishes:
    """A scheme and what differs from it: operators that stay float, and widths by ONNX name."""

    scheme: Scheme
    keep: Sequence[str]
    bits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Stored:
    """How one weight is stored: coremltools' configuration, its bits, and the elements of a row that share a scale."""

    config: Any
    bits: int
    block: int = 0


def _compress(
    model: Any, wishes: _Wishes, names: Provenance, onnx: Path, samples: Path | None
) -> tuple[Any, dict[str, str], list[str]]:
    """Return the model with its weights compressed, why some were not (by constant name), and notes."""
    if wishes.scheme.method is not Method.WEIGHT_ONLY:
        return model, {}, []
    stored: dict[str, _Stored] = {}
    reasons: dict[str, str] = {}
    kept: set[str] = set()
    for operation, weight in weights(model._mil_program):
        if matched := {pattern for pattern in wishes.keep if _means(pattern, operation, weight, names)}:
            kept |= matched
            reasons[weight.name] = "named in keep"
            stored[weight.name] = _Stored(None, 0)
        elif weight.name not in stored:
            stored[weight.name] = _weight_config(operation, weight, wishes, names)
    notes = [
        f"keep pattern {pattern!r} matched no operator of this file"
        for pattern in wishes.keep
        if pattern not in kept
    ]
    eight = sum(item.bits > wishes.scheme.weight_bits for item in stored.values())
    if eight:
        notes.append(
            f"{eight} weights are int8 instead of int4: they were spared, or their input channels have no divisor from "
            "16 to the block size"
        )
    rounding = RoundFourBits({name: item.block for name, item in stored.items() if item.block}, onnx, samples)
    model = _quantized(model, rounding, {name: item.config for name, item in stored.items()})
    notes += filter(None, [rounding.rounded.note()])
    # Constants take the suffix of their compressed form; reasons go by the name in the finished file.
    return model, reasons, notes


def _quantized(model: Any, rounding: RoundFourBits, configs: Mapping[str, Any]) -> Any:
    """Return `model` rounded and stored as `configs` say: `coremltools.optimize`'s function with one more pass."""
    config = compress.OptimizationConfig(global_config=None, op_name_configs=dict(configs))
    quantizer = PASS_REGISTRY["compression::linear_quantize_weights"]
    quantizer.set_options([PassOption("config", config), PassOption("joint_compression", False)])
    return _apply_graph_pass(model, [rounding, quantizer])


def _weight_config(operation: Any, weight: Any, wishes: _Wishes, names: Provenance) -> _Stored:
    """Return how one weight is to be stored."""
    per_channel = {"mode": "linear_symmetric", "granularity": "per_channel", "weight_threshold": 0}
    eight = _Stored(compress.OpLinearQuantizerConfig(dtype="int8", **per_channel), 8)
    paths = _paths(operation, names)
    asked_bits = [
        bits
        for name, bits in wishes.bits.items()
        if is_onnx_layer(name, operation.op_type, paths, CORE_ML_KINDS)
    ]
    if wishes.scheme.weight_bits == 8 or 8 in asked_bits:
        return eight
    width, asked = reduced_axis(operation, weight), wishes.scheme.block_size or 0
    window = math.prod(weight.shape[2:]) if operation.op_type == "conv" else 1
    if 1 < width <= asked:
        # One block spans all input channels, which is one scale a channel.
        return _Stored(compress.OpLinearQuantizerConfig(dtype="int4", **per_channel), 4, width * window)
    block = next((size for size in range(asked, 15, -8) if width % size == 0), 0)
    if not block:
        return eight
    config = compress.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=block, weight_threshold=0
    )
    return _Stored(config, 4, block * window)


def _means(pattern: str, operation: Any, weight: Any, names: Provenance) -> bool:
    """Whether a `keep` pattern names the operator: as Core ML does, as torch does, or as the ONNX graph does."""
    if any(fnmatch.fnmatchcase(name, pattern) for name in _candidates(operation, weight, names)):
        return True
    return is_onnx_layer(pattern, operation.op_type, _paths(operation, names), CORE_ML_KINDS)


def _candidates(operation: Any, weight: Any, names: Provenance) -> set[str]:
    """Return the names a `keep` glob may use: Core ML's, the torch module's, its parents', its parameters'."""
    found = {weight.name, operation.name}
    for path in _paths(operation, names):
        steps = path.split(".")
        found.update(".".join(steps[:count]) for count in range(1, len(steps) + 1))
        found.update({f"{path}.weight", f"{path}.bias"})
    return found


def _paths(operation: Any, names: Provenance) -> tuple[str, ...]:
    own = operation.outputs[0].name
    parameters = [
        variable.name
        for variable in operands(operation)
        if variable.op is not None and variable.op.op_type.startswith("const")
    ]
    return names.of(own, *parameters)


def _display(operation: Any, names: Provenance) -> str:
    paths = _paths(operation, names)
    return f"{'+'.join(paths)}/{operation.outputs[0].name}" if paths else str(operation.outputs[0].name)


def _write_package(model: Any, path: Path, metadata: Mapping[str, str], artifact: str) -> None:
    """Write the package as one appearing folder with canonical bytes, saying `metadata` of itself.

    Dates, versions and random identifiers are dropped, map entries sorted (protobuf's deterministic form).
    """
    spec = model.get_spec()
    write_metadata(spec, metadata, artifact)
    weights = Path(model.weights_dir) / "weight.bin" if model.weights_dir else None
    with files.appear_at_once(path) as folder:
        data = folder / "Data" / "com.apple.CoreML"
        (data / "weights").mkdir(parents=True)
        (data / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
        entries = {"model.mlmodel": ("model.mlmodel", "CoreML Model Specification")}
        if weights is not None and weights.is_file():
            (data / "weights" / "weight.bin").write_bytes(weights.read_bytes())
            entries["weights"] = ("weights", "CoreML Model Weights")
        (folder / "Manifest.json").write_text(_manifest(entries), encoding="utf-8")


def _manifest(entries: dict[str, tuple[str, str]]) -> str:
    identifiers = {name: str(uuid.uuid5(_NAMESPACE, name)) for name in entries}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": "com.apple.CoreML",
                "description": description,
                "name": name,
                "path": f"com.apple.CoreML/{relative}",
            }
            for name, (relative, description) in entries.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"


def features(descriptions: Any) -> list[dict[str, Any]]:
    """Return name, numpy dtype name and shape of each multi-array of a model description, JSON-ready."""
    from coremltools.proto import FeatureTypes_pb2

    names = {number: name.lower() for name, number in FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.items()}
    return [
        {
            "name": feature.name,
            "dtype": {"double": "float64"}.get(
                names[feature.type.multiArrayType.dataType], names[feature.type.multiArrayType.dataType]
            ),
            "shape": list(feature.type.multiArrayType.shape),
        }
        for feature in descriptions
    ]

"""The child process of `tflite`: program → float `.tflite` → quantised `.tflite`, answered as JSON.

Everything noisy, heavy and crash-prone happens here: torch, jax, litert-torch, litert-quantizer and LiteRT.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from exporter.artifacts import to_plain
from exporter.errors import UnsupportedError
from exporter.formats.correspondence import Shared, onnx_prints, share_ranges
from exporter.formats.program import specs_from_json
from exporter.formats.tflite.calibrate import fingerprints, observe, ranges
from exporter.formats.tflite.coverage import coverage
from exporter.formats.tflite.float_model import float_model
from exporter.formats.tflite.graph import NUMPY_DTYPES, TYPE_NAMES, read_model, shape_of
from exporter.formats.tflite.metadata import add_metadata, labels_archive
from exporter.formats.tflite.pack import pack
from exporter.formats.tflite.policy import Decision, Treatment, decide, is_kept, moves
from exporter.formats.tflite.quantize import activations, needs_current_runtime, quantize
from exporter.formats.tflite.rounding import round_four_bits
from exporter.schemes import Scheme
from exporter.system import files

_CURRENT_RUNTIME = "needs a current LiteRT: tflite-runtime 2.14 and other older runtimes refuse to load it"


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Write `request["path"]` and return `{inputs, outputs, layers, notes}` of the file, JSON-ready.

    `request` holds `program`, `path`, `workdir`, `samples` (or null), `scheme`, `rule`, `keep`, `onnx` and `ranges`
    (the float graph and `{value: [low, high]}` settled for it), `bits` (widths by ONNX name), `rounding` (whether int4
    weights are rounded with the samples), `inputs` and `outputs` as lists of `{name, dtype, shape}` with fixed shapes,
    and `metadata` (texts by key) that the file carries as that of `artifact`.
    """
    scheme, keep = Scheme.parse(request["scheme"]), tuple(request["keep"])
    inputs, outputs = specs_from_json(request["inputs"]), specs_from_json(request["outputs"])
    made = float_model(Path(request["program"]), inputs, outputs, Path(request["workdir"]))
    model = read_model(made.path.read_bytes())
    decisions = decide(model, scheme, keep, request["bits"])
    content, sharing = _content(made.path, model, decisions, request)
    finished = read_model(content)
    reasons = {decision.operator.name: decision.reason for decision in decisions}
    covered = coverage(finished, reasons)
    if not scheme.is_float and not covered.quantized_count:
        raise UnsupportedError(
            f"{Path(request['path']).name}: nothing could be quantised",
            fix="use tflite:float16, or look at the reason of each operator in the details",
            details={"left_float": covered.reasons()},
        )
    answer = {
        "inputs": _specs(finished, "inputs"),
        "outputs": _specs(finished, "outputs"),
        "layers": to_plain(covered.layers),
    }
    is_current = needs_current_runtime(finished)
    add_metadata(finished, request["metadata"], request["artifact"])
    content = labels_archive(pack(finished), request["metadata"])
    files.write_bytes(Path(request["path"]), content)
    return {
        **answer,
        "notes": [
            *_notes(scheme, decisions, keep, made.path.stat().st_size, len(content)),
            *filter(None, sharing),
            *([_CURRENT_RUNTIME] if is_current else []),
        ],
    }


def _content(
    path: Path, model: Any, decisions: tuple[Decision, ...], request: dict[str, Any]
) -> tuple[bytes, list[str]]:
    """Return the quantised file, and what to say of what it shares with the ONNX artifact."""
    if all(decision.treatment is Treatment.FLOAT for decision in decisions):
        return path.read_bytes(), []
    if any(decision.treatment is Treatment.WEIGHT4 for decision in decisions):
        return _four_bit_content(path, decisions, request)
    wanted = activations(model, decisions)
    if not wanted:
        return quantize(path, decisions, {}), []
    samples = Path(request["samples"])
    shared = _shared(path, samples, wanted, request).carried(moves(model))
    sketches = observe(path, samples, shared.missing) if shared.missing else {}
    spans = {**shared.ranges, **ranges(sketches, request["rule"])}
    return quantize(path, decisions, spans), [shared.note()] if request["ranges"] else []


def _four_bit_content(
    path: Path, decisions: tuple[Decision, ...], request: dict[str, Any]
) -> tuple[bytes, list[str]]:
    samples = Path(request["samples"]) if request["rounding"] and request["samples"] else None
    with files.scratch_folder("rounded") as folder:
        chosen = folder / path.name
        rounded = round_four_bits(path, decisions, samples, chosen)
        return quantize(chosen, decisions, {}), [rounded.note()]


def _shared(path: Path, samples: Path, wanted: Collection[str], request: dict[str, Any]) -> Shared:
    settled = {name: (float(low), float(high)) for name, (low, high) in request["ranges"].items()}
    if not settled:
        return Shared({}, tuple(sorted(wanted)))
    known = onnx_prints(Path(request["onnx"]), settled, samples)
    return share_ranges(fingerprints(path, samples, wanted), known, settled)


def _specs(model: Any, side: str) -> list[dict[str, Any]]:
    entries = getattr(model.signatureDefs[0], side)
    tensors = model.subgraphs[0].tensors
    return [
        {
            "name": entry.name.decode(),
            "dtype": NUMPY_DTYPES[TYPE_NAMES[tensors[entry.tensorIndex].type]],
            "shape": list(shape_of(model, entry.tensorIndex)),
        }
        for entry in entries
    ]


def _notes(
    scheme: Scheme, decisions: tuple[Decision, ...], keep: tuple[str, ...], float_bytes: int, size: int
) -> list[str]:
    notes = [
        f"keep pattern {pattern!r} matched no operator of this file"
        for pattern in keep
        if not any(is_kept(decision.operator, (pattern,)) for decision in decisions)
    ]
    if not (scheme.is_float and scheme.weight_bits == 32) and size >= float_bytes:
        notes.append(
            f"{scheme} takes {size} bytes, float32 {float_bytes}: the scales and conversions of so small a model "
            "outweigh what its weights save"
        )
    if scheme.weight_bits == 4:
        notes += _four_bit_notes(decisions)
    return notes


def _four_bit_notes(decisions: tuple[Decision, ...]) -> list[str]:
    four = [decision for decision in decisions if decision.treatment is Treatment.WEIGHT4]
    eight = [decision for decision in decisions if decision.treatment is Treatment.WEIGHT8]
    notes = []
    if four:
        notes.append(
            f"{len(four)} operators have int4 weights, and LiteRT quantises their activations at run time"
        )
    if eight:
        notes.append(
            f"{len(eight)} operators have int8 weights instead of int4: they were spared, their width is no multiple of "
            "32 (LiteRT's smallest block), or they are convolutions, whose one int4 scale a channel costs accuracy "
            "and time (quantize.conv_int4 asks for it)"
        )
    return notes

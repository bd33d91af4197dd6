"""Run the float model once over the data and sketch the tensors that a quantiser will ask about.

Knows onnx and onnxruntime, and imports them only when it runs. Must not know what the ranges are for, nor
any target.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.dataset import Array, Dataset, Fingerprint, Sample
from calibration.sketch import Sketch
from calibration.statistics import Statistics
from exporter.errors import (
    CalibrationError,
    InputError,
    InternalError,
    ResourceError,
    UnsafeError,
    UnsupportedError,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["Statistics", "collect"]

_HASH_BLOCK = 1 << 20


def collect(
    model: bytes | Path,
    tensors: Sequence[str],
    dataset: Dataset,
    *,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Return sketches of `tensors` of the float ONNX `model` over `dataset`.

    `tensors` name graph inputs, graph outputs or anything the top-level graph computes, of a floating-point
    type. `threads` is onnxruntime's, 0 for as many as there are cores. `progress(done, total)` is called
    after every sample.

    Each sample runs alone, so the result cannot depend on a batch size, and its activations are freed at
    once, so memory does not grow with their number. Nothing is written: external weights are read from
    where they lie. Raises InputError for an unreadable model, UnsupportedError for a tensor without a
    range, CalibrationError for data the model refuses or that makes a tensor NaN or infinite, ResourceError
    when memory runs out.
    """
    if len(dataset) == 0:
        raise CalibrationError(
            f"{dataset.source or 'the calibration set'} has no samples", fix="give at least one sample"
        )
    data, folder = _read(model)
    graph = _Graph(data, folder, tensors)
    model_sha256 = _digest(data, folder, graph.external)
    # Rebound, so that one copy of the model is alive while onnxruntime reads it, and none while it runs.
    data += graph.suffix()
    session = _session(data, folder, threads)
    del data
    sketches = {name: Sketch.empty() for name in tensors}
    digest = Fingerprint()
    count = 0
    for count, sample in enumerate(dataset, start=1):
        digest.add(sample)
        _observe(session, graph, sample, count - 1, sketches)
        if progress is not None:
            progress(count, len(dataset))
    shown = digest.hexdigest(dataset.labels)
    if count != len(dataset) or shown != dataset.fingerprint:
        raise CalibrationError(
            f"{dataset.source or 'the calibration set'} gave other samples when read again",
            fix="make it deterministic: no shuffling and no random augmentation",
        )
    return Statistics(MappingProxyType(sketches), model_sha256, shown, count)


class _Graph:
    """What collecting needs to know of the model: inputs, what to fetch, and which files hold its weights."""

    def __init__(self, data: bytes, folder: Path | None, tensors: Sequence[str]) -> None:
        proto = _parse(data)
        initializers = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = [value.name for value in proto.graph.input if value.name not in initializers]
        self.outputs = [value.name for value in proto.graph.output]
        self.computed = {name for node in proto.graph.node for name in node.output if name}
        self.external = sorted(set(_external_locations(proto.graph)))
        if self.external and folder is None:
            raise InternalError("a model with external weights was given as bytes", fix="give its path")
        for name in tensors:
            self._check_observable(name, initializers)
        self.fetched = [name for name in dict.fromkeys(tensors) if name not in self.inputs]
        self.shown = [name for name in dict.fromkeys(tensors) if name in self.inputs]

    def suffix(self) -> bytes:
        """Return the bytes that, appended to the serialised model, add the wanted tensors to its outputs.

        Concatenated protobuf messages merge, and their repeated fields append (protobuf encoding guide,
        "Last One Wins"): no second copy of a large model is built.
        """
        import onnx

        extension = onnx.ModelProto()
        for name in self.fetched:
            if name not in self.outputs:
                extension.graph.output.add().name = name
        suffix: bytes = extension.SerializeToString()
        return suffix

    def _check_observable(self, name: str, initializers: set[str]) -> None:
        if name in self.computed or name in self.inputs:
            return
        if name in initializers:
            raise UnsupportedError(
                f"tensor {name!r} is a weight, not an activation", fix="take its range from its values"
            )
        near = difflib.get_close_matches(name, sorted(self.computed | set(self.inputs)), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "name a tensor of the top-level graph"
        raise InputError(f"the model has no tensor {name!r}", fix=hint)


def _read(model: bytes | Path) -> tuple[bytes, Path | None]:
    if isinstance(model, bytes):
        return model, None
    try:
        return model.read_bytes(), model.resolve().parent
    except OSError as error:
        raise InputError(
            f"cannot read model {model}: {error.strerror}", fix="give the path of an .onnx file"
        ) from error


def _parse(data: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InputError(
            f"the model's {len(data)} bytes are not ONNX: {error}", fix="export the model again"
        ) from error
    if not proto.graph.node:
        raise InputError("the model has no operators", fix="export the model again")
    return proto


def _external_locations(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield where each tensor kept outside the model file lies, in subgraphs too."""
    import onnx

    held = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            held += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _external_locations(inner)
    for tensor in held:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _digest(data: bytes, folder: Path | None, external: Sequence[str]) -> str:
    """Return the SHA-256 of the model's bytes, then those of its weight files in order of name."""
    digest = hashlib.sha256(data)
    for location in external:
        relative = PurePosixPath(location)
        path = (folder or Path()) / relative
        outside = relative.is_absolute() or ".." in relative.parts or path.resolve() != path
        if not location or outside:
            raise UnsafeError(
                f"the model's weights lie at {location!r}, outside its folder",
                fix="put the data file beside the model",
            )
        try:
            with path.open("rb") as file:
                while block := file.read(_HASH_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise InputError(
                f"cannot read the model's weights {path}: {error.strerror}",
                fix="put the data file beside the model",
            ) from error
    return digest.hexdigest()


def _session(data: bytes, folder: Path | None, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # The level above converts convolutions to a blocked layout: with every result observed each would be
    # converted back, and the blocked copies of the weights cost more memory than the activations.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise InputError(
            f"onnxruntime cannot load the model: {_first_line(error)}", fix="run `edge-export inspect` on it"
        ) from error


def _observe(
    session: onnxruntime.InferenceSession,
    graph: _Graph,
    sample: Sample,
    index: int,
    sketches: dict[str, Sketch],
) -> None:
    missing = [name for name in graph.inputs if name not in sample]
    if missing:
        raise CalibrationError(
            f"sample {index} has no input {missing[0]!r} (it has {', '.join(sorted(sample)) or 'nothing'})",
            fix="name the arrays as the model names its inputs",
        )
    for name in graph.shown:
        _sketch(sketches[name], sample[name], name, index)
    if not graph.fetched:
        return
    try:
        results = session.run(
            graph.fetched, {name: np.ascontiguousarray(sample[name]) for name in graph.inputs}
        )
    except _runtime_errors() as error:
        raise _refused(error, index) from error
    # Taken from the end and dropped one by one, so that memory is given back as soon as it was seen.
    for name in reversed(graph.fetched):
        _sketch(sketches[name], results.pop(), name, index)


def _sketch(sketch: Sketch, array: Array | Any, name: str, index: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UnsupportedError(
            f"tensor {name!r} is {kind} and has no range", fix="observe floating-point tensors only"
        )
    try:
        sketch.update(array)
    except CalibrationError as error:
        raise CalibrationError(
            f"tensor {name!r} {error.cause} for sample {index}",
            fix=error.fix,
            details={"tensor": name, "sample": index},
        ) from error


def _refused(error: Exception, index: int) -> CalibrationError | ResourceError:
    message = _first_line(error)
    if "Failed to allocate memory" in message or "bad_alloc" in message:
        return ResourceError(
            f"memory ran out running sample {index}: {message}",
            fix="use smaller samples, or a larger machine",
        )
    if "out of data bounds" in message or "indices element out of" in message:
        return CalibrationError(
            f"the model refuses sample {index}: {message}",
            fix="an index is outside its table: use the tokenizer that the model was trained with",
        )
    return CalibrationError(
        f"the model refuses sample {index}: {message}",
        fix="compare the sample's shapes and dtypes with the model's inputs",
    )


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: its errors share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
        "EPFail",
    )
    return (RuntimeError, ValueError, TypeError, *(getattr(state, name) for name in names))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Run the float model once over the data and sketch the tensors that a quantiser will ask about.

Knows onnx and onnxruntime, and imports them only when it runs. Must not know what the ranges are for, nor
any target.
"""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.checkpoint import Checkpoint, Collected, Task
from calibration.dataset import Dataset, Fingerprint
from calibration.grouping import optimise_into, sessions_of, split, tensor_bytes
from calibration.sketch import Sketch
from calibration.statistics import Shards, Statistics
from exporter.arrays import Array, Sample
from exporter.errors import (
    CalibrationError,
    InputError,
    InternalError,
    ResourceError,
    UnsafeError,
    UnsupportedError,
    UsageError,
    first_line,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["Statistics", "collect", "digest_model"]

_HASH_BLOCK = 1 << 20


def collect(
    model: bytes | Path,
    tensors: Sequence[str],
    dataset: Dataset,
    *,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
    shard: tuple[int, int] = (1, 1),
    checkpoint: Path | None = None,
    max_memory: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Statistics:
    """Return sketches of `tensors` of the float ONNX `model` over `dataset`.

    `tensors` name graph inputs, graph outputs or anything the top-level graph computes, of a floating-point
    type. `threads` is onnxruntime's, 0 for as many as there are cores. `progress(done, total)` is called
    after every sample.

    `shard` (i, n) runs only the samples i - 1, i - 1 + n, …; every sample is still read, for the data set's
    fingerprint. `checkpoint` is a file that holds what was seen so far, written every 10 seconds and at the end; if it
    is there already, it is gone on from, and the result is the same to the bit. Whoever has saved the result removes
    it. `max_memory` is how many bytes one sample's observed activations may take together, besides what inference
    needs: where they take more, they are observed in groups, each in a pass of its own, to the same bits; `say` is told
    how many. Sizes are those of the first sample; a tensor that is larger than `max_memory` is observed alone.

    Each sample runs alone, so the result cannot depend on a batch size, and its activations are freed at
    once, so memory does not grow with their number. External weights are read from where they lie, and nothing but the
    checkpoint is written; groups keep an optimised copy of the model in a temporary folder. Raises InputError for
    an unreadable model, UnsupportedError for a tensor without a range, CalibrationError for data the model refuses,
    that makes a tensor NaN or infinite, or that is fewer than the shards, and for a checkpoint of something
    else, ResourceError when memory or the disk runs out.
    """
    _require_samples(dataset, shard)
    data, folder = _read(model)
    graph = _Graph(data, folder, tensors)
    model_sha256 = _digest(data, folder, graph.external)
    task = Task(model_sha256, dataset.fingerprint, frozenset(graph.observed), shard)
    saved = Checkpoint(checkpoint, task)
    collected = saved.resume(graph.observed)
    total = len(range(shard[0] - 1, len(dataset), shard[1]))

    def seen() -> None:
        saved.note(collected)
        if progress is not None:
            progress(collected.done, total)

    groups = _groups(data, graph, dataset, max_memory)
    if len(groups) > 1 and say is not None:
        say(f"observing {len(graph.observed)} activations in {len(groups)} groups to stay within memory")
    # Handed over, so that one copy of the model is alive while onnxruntime reads it, and none while it runs.
    handed = [data]
    del data
    for group, session in _sessions(handed, folder, graph, groups, threads):
        shown = _run_pass(session, graph, group, dataset, shard, collected, seen)
        if shown != dataset.fingerprint:
            raise CalibrationError(
                f"{dataset.source or 'the calibration set'} gave other samples when read again",
                fix="make it deterministic: no shuffling and no random augmentation",
            )
    saved.write(collected)
    part = None if shard[1] == 1 else Shards(shard[1], (shard[0],))
    return Statistics(
        MappingProxyType(collected.sketches), model_sha256, dataset.fingerprint, total, shards=part
    )


def _require_samples(dataset: Dataset, shard: tuple[int, int]) -> None:
    number, count = shard
    called = dataset.source or "the calibration set"
    if not 1 <= number <= count:
        raise UsageError(f"there is no shard {number}/{count}", fix="give 1/n to n/n")
    if len(dataset) == 0:
        raise CalibrationError(f"{called} has no samples", fix="give at least one sample")
    if number > len(dataset):
        raise CalibrationError(
            f"shard {number}/{count} of {called} is empty: it has {len(dataset)} samples",
            fix=f"cut it into {len(dataset)} shards at most",
        )


def _groups(
    data: bytes, graph: _Graph, dataset: Dataset, max_memory: int | None
) -> tuple[tuple[str, ...], ...]:
    """Return the observed tensors in groups that fit into `max_memory` bytes."""
    if max_memory is None:
        return (graph.observed,)
    sample = next(iter(dataset))
    sizes = tensor_bytes(_parse(data), sample)
    fetched = split(graph.fetched, sizes, max_memory) or ((),)
    return ((*graph.shown, *fetched[0]), *fetched[1:])


def _sessions(
    handed: list[bytes],
    folder: Path | None,
    graph: _Graph,
    groups: Sequence[tuple[str, ...]],
    threads: int,
) -> Iterator[tuple[tuple[str, ...], onnxruntime.InferenceSession]]:
    """Yield each group with a session that computes it; takes the model's bytes out of `handed`."""
    suffix = graph.suffix()
    if len(groups) == 1:
        yield groups[0], _session(handed.pop() + suffix, folder, threads)
        return
    with tempfile.TemporaryDirectory(prefix="edge-exporter-") as name:
        scratch = Path(name)
        # Not kept: only the graph that it writes is wanted.
        _session(handed.pop() + suffix, folder, threads, optimised=scratch)
        asked = [[name for name in group if name in graph.computed] for group in groups]
        try:
            yield from zip(groups, sessions_of(scratch, asked, threads), strict=True)
        except _runtime_errors() as error:
            raise ResourceError(
                f"onnxruntime cannot load its optimised graph from {scratch}: {first_line(error)}",
                fix="free some space in the temporary folder, or give more memory",
            ) from error


def _run_pass(
    session: onnxruntime.InferenceSession,
    graph: _Graph,
    group: Sequence[str],
    dataset: Dataset,
    shard: tuple[int, int],
    collected: Collected,
    seen: Callable[[], None],
) -> str:
    """Show the shard's samples to the tensors of `group` that have not seen them; return the fingerprint of all."""
    digest = Fingerprint()
    for index, sample in enumerate(dataset):
        digest.add(sample)
        place, other = divmod(index - shard[0] + 1, shard[1])
        wanted = [name for name in group if collected.samples[name] <= place]
        if other or not wanted:
            continue
        _observe(session, graph, sample, index, {name: collected.sketches[name] for name in wanted})
        for name in wanted:
            collected.samples[name] += 1
        seen()
    return digest.hexdigest(dataset.labels)


def digest_model(model: Path) -> str:
    """Return what `Statistics.model_sha256` is for `model`; raises InputError and UnsafeError as `collect` does."""
    data, folder = _read(model)
    return _digest(data, folder, sorted(set(_external_locations(_parse(data).graph))))


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
        self.observed = tuple(dict.fromkeys(tensors))
        self.fetched = [name for name in self.observed if name not in self.inputs]
        self.shown = [name for name in self.observed if name in self.inputs]

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


def _session(
    data: bytes, folder: Path | None, threads: int, *, optimised: Path | None = None
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # The level above converts convolutions to a blocked layout: with every result observed each would be
    # converted back, and the blocked copies of the weights cost more memory than the activations.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if optimised is not None:
        optimise_into(options, optimised)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise InputError(
            f"onnxruntime cannot load the model: {first_line(error)}", fix="run `edge-export inspect` on it"
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
        if name in sketches:
            _sketch(sketches[name], sample[name], name, index)
    fetched = [name for name in sketches if name in graph.computed]
    if not fetched:
        return
    try:
        results = session.run(fetched, {name: np.ascontiguousarray(sample[name]) for name in graph.inputs})
    except _runtime_errors() as error:
        raise _refused(error, index) from error
    # Taken from the end and dropped one by one, so that memory is given back as soon as it was seen.
    for name in reversed(fetched):
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
    message = first_line(error)
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

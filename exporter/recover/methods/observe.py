"""Run a graph over samples and look at values inside it, one sample at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.model.onnx_write import save_onnx
from exporter.runtimes.sessions import open_session


def observe(
    model: ir.Model, names: Sequence[str], samples: Iterable[Mapping[str, np.ndarray]], *, threads: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield for each sample the values called `names` (graph inputs, outputs or anything between), by name.

    `threads` is onnxruntime's, 0 for as many as there are cores. What one sample makes is freed before the next runs.
    Nothing of the graph is changed.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # The level above lays convolutions out in blocks: every value that is looked at would be converted back.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="edge-observe-") as folder:
        path = Path(folder) / "observed.onnx"
        save_onnx(_exposing(model, names), path)
        session = open_session(str(path), options)
    wanted = [value.name for value in session.get_inputs()]
    computed = [name for name in dict.fromkeys(names) if name not in wanted]
    for sample in samples:
        feeds = {name: np.ascontiguousarray(sample[name]) for name in wanted}
        results = dict(zip(computed, session.run(computed, feeds), strict=True)) if computed else {}
        yield {name: results[name] if name in results else feeds[name] for name in names}


def _exposing(model: ir.Model, names: Sequence[str]) -> ir.Model:
    exposed = model.clone()
    values = {value.name: value for node in exposed.graph for value in node.outputs}
    present = {value.name for value in (*exposed.graph.outputs, *exposed.graph.inputs)}
    for name in dict.fromkeys(names):
        if name not in present:
            value = values[name]
            # An output must state its type; values inside a written graph need not.
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            exposed.graph.outputs.append(value)
    return exposed

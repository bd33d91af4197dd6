"""The child process of `ort`: one `.onnx` as onnxruntime's flatbuffer, and the list of the operators it needs.

The conversion keeps signed activations signed (`session.qdqisint8allowed`), as onnxruntime does on ARM; on other hosts
it would rewrite them to unsigned.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Convert the file `request["onnx"]` to `request["ort"]`, in canonical bytes; `["operators"]` lists its operators."""
    import onnxruntime as ort

    with _without_torch():
        from onnxruntime.tools.ort_format_model.utils import create_config_from_models

        from exporter.formats.onnx.ort_canonical import canonicalize

    options = ort.SessionOptions()
    options.optimized_model_filepath = request["ort"]
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    # The NCHWc layout is an x86 layout: a file that has it does not run on ARM.
    ort.InferenceSession(
        request["onnx"], options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )
    canonicalize(Path(request["ort"]))
    folder = Path(request["ort"]).parent
    listing = folder / f".{Path(request['operators']).name}.part"
    create_config_from_models([Path(request["ort"])], listing, enable_type_reduction=False)
    text = listing.read_text(encoding="utf-8")
    listing.unlink()
    kept = [line for line in text.splitlines() if line and not line.startswith("#")]
    Path(request["operators"]).write_text(
        "# Operators of this model, for onnxruntime's build.py --include_ops_by_config\n"
        + "\n".join(kept)
        + "\n",
        encoding="utf-8",
    )
    return {}


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hide torch, unless it is there already, from what is imported here: onnxruntime's tools would load it unused."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]

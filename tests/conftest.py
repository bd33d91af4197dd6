"""What all tests stand on: onnxruntime sessions of their own compute as the device does, whichever x86 the host has."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime as ort

from exporter.runtimes import sessions

_create = ort.InferenceSession.__init__


def _create_faithful(self: Any, model: Any, sess_options: Any = None, *rest: Any, **more: Any) -> None:
    """Create a session with exact sums; of a graph that onnxruntime refuses then, one whose layers share no constant."""
    options = sess_options or ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        _create(self, model, options, *rest, **more)
    except Exception as error:
        if "AddInitializedOrtValue" not in str(error):
            raise
        _create(self, _without_sharing(model), options, *rest, **more)


def _without_sharing(model: Any) -> bytes:
    """Return the bytes of `model` (bytes or a path) with a copy of each constant for every further node that reads it."""
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    constants = {item.name: item for item in proto.graph.initializer}
    seen: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        for index, name in enumerate(node.input):
            if name in constants and name in seen:
                copy = proto.graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = node.input[index] = f"{name}/{number}.{index}"
            seen.add(name)
    return proto.SerializeToString()


if sessions.pair_sums_saturate():
    ort.InferenceSession.__init__ = _create_faithful

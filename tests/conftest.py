"""What all tests stand on: who runs beside whom, and onnxruntime sessions that compute as the device does.

The sessions of the tests' own give the same answers whichever x86 the host has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from hypothesis import settings

from exporter.runtimes import sessions

ROOT = Path(__file__).parent
# Folders whose tests stand on builds, keys or servers of the session, or are measured and cut off by the clock: one
# process runs all of such a folder, one test after another.
TOGETHER = ("attesting", "e2e", "faults", "registry", "targets/devices")
# What takes minutes begins first, so that no process is left alone with it at the end.
FIRST = ("e2e", "targets/devices", "faults", "registry")

# How busy the machine is must not fail a test of numbers.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def _scope(module: str) -> str:
    """Return what one process runs as a whole: the folder of `module`, or the module (`tests/recipe/test_recipe.py`)."""
    folder = module.removeprefix("tests/").rpartition("/")[0]
    return folder if folder in TOGETHER else module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    scopes = {item: _scope(item.path.relative_to(ROOT.parent).as_posix()) for item in items}
    items.sort(key=lambda item: FIRST.index(scopes[item]) if scopes[item] in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what hands tests to processes: by `_scope`. (xdist 3.8 does not see its own groups under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid.partition("::")[0])

    return ByScope(config, log)


_create = ort.InferenceSession.__init__


def _create_faithful(self: Any, model: Any, sess_options: Any = None, *rest: Any, **more: Any) -> None:
    """Create a session with exact sums; of a graph that onnxruntime refuses then, one whose layers share no constant.

    Who asks for signed activations, as the tool's own fallback does, has what the device does already.
    """
    options = sess_options or ort.SessionOptions()
    if _asked_to_keep_signed(options):
        _create(self, model, options, *rest, **more)
        return
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        _create(self, model, options, *rest, **more)
    except Exception as error:
        if "AddInitializedOrtValue" not in str(error):
            raise
        _create(self, _without_sharing(model), options, *rest, **more)


def _asked_to_keep_signed(options: ort.SessionOptions) -> bool:
    try:
        return bool(options.get_session_config_entry("session.qdqisint8allowed") == "1")
    except RuntimeError:  # how onnxruntime says that nobody set the entry
        return False


def _without_sharing(model: Any) -> bytes:
    """Return the bytes of `model` (bytes or a path) with no constant, and no dequantised one, that two nodes read."""
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    graph = proto.graph
    constants = {item.name: item for item in graph.initializer}
    decoders = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    nodes, seen = [], set()

    def unshared(name: str, mark: str) -> str:
        """Return `name`, or that of a copy if something has read it."""
        first = name not in seen
        seen.add(name)
        if first or name not in constants | decoders:
            return name
        copy = onnx.NodeProto() if name in decoders else graph.initializer.add()
        copy.CopyFrom(decoders[name] if name in decoders else constants[name])
        copy.name = f"{name}/{mark}"
        if name in decoders:
            copy.output[0] = copy.name
            copy.input[:] = [unshared(given, f"{mark}.{at}") for at, given in enumerate(copy.input)]
            nodes.append(copy)
        return copy.name

    for number, node in enumerate(graph.node):
        node.input[:] = [unshared(name, f"{number}.{at}") for at, name in enumerate(node.input)]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return proto.SerializeToString()


if sessions.pair_sums_saturate():
    ort.InferenceSession.__init__ = _create_faithful

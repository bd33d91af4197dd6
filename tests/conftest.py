"""What all tests stand on: onnxruntime sessions of their own compute as the device does, whichever x86 the host has."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from exporter.runtimes import sessions

_create = ort.InferenceSession.__init__


def _create_faithful(self: Any, model: Any, sess_options: Any = None, *rest: Any, **more: Any) -> None:
    """Create a session; without VNNI ask for exact sums first, and where that is refused keep activations signed."""
    options = sess_options or ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        _create(self, model, options, *rest, **more)
    except Exception as error:
        if "AddInitializedOrtValue" not in str(error):
            raise
        options.add_session_config_entry("session.x64quantprecision", "0")
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        _create(self, model, options, *rest, **more)


if sessions.pair_sums_saturate():
    ort.InferenceSession.__init__ = _create_faithful

"""ONNX files, in onnxruntime."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any

from targets.devices.probe.events import Json


class OnnxModel:
    """A `.onnx` or `.ort` file in onnxruntime on the CPU, as an app would load it."""

    def __init__(self, path: str, threads: int, trace: str | None = None) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if trace is not None:
            options.enable_profiling, options.profile_file_prefix = True, trace
        self.version = runtime.__version__
        self._session = _open_session(runtime, str(path), options)
        self._outputs = [item.name for item in self._session.get_outputs()]

    def prepare(self, tensors: Json) -> Any:
        """Return `tensors` as `run` takes them."""
        return {item.name: tensors[item.name] for item in self._session.get_inputs()}

    def run(self, prepared: Any) -> Any:
        """Do what is timed."""
        return self._session.run(None, prepared)

    def named(self, results: Any) -> Json:
        """Return results by name."""
        return {name: results[index] for index, name in enumerate(self._outputs)}

    def trace(self) -> str:
        """Return the file that the runtime wrote about every operator, if it was made with `trace`."""
        return str(self._session.end_profiling())


def _open_session(runtime: Any, path: str, options: Any) -> Any:
    """Return a session that computes as ARM does; where sums saturate, with unsigned weights or signed activations."""
    providers = ["CPUExecutionProvider"]
    if _pair_sums_saturate() and hasattr(options, "add_session_config_entry"):
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return runtime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's classes share no other base
            if "AddInitializedOrtValue" not in str(error):  # what onnxruntime 1.32 says of shared zero points
                raise
        options.add_session_config_entry("session.x64quantprecision", "0")
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return runtime.InferenceSession(path, options, providers=providers)


def _pair_sums_saturate() -> bool:
    """Return whether this is an x86 without VNNI, where onnxruntime's uint8 × int8 sums saturate; ARM's never do."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not any(name in flags for name in ("avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"))

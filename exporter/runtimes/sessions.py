"""onnxruntime sessions whose verdict does not depend on which x86 the host has."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path
from typing import Any

_CPU_FACTS = Path("/proc/cpuinfo")
_WIDE_SUMS = "session.x64quantprecision"
_KEEP_SIGNED = "session.qdqisint8allowed"


def open_session(model: str | bytes, options: Any) -> Any:
    """Return the `InferenceSession` of `model` on the CPU with `options`, computing as ARM does; raises what that raises.

    On x86 onnxruntime turns int8 activations into uint8, and without VNNI its kernels add neighbouring uint8 × int8 products
    in 16 bits that saturate: the demo's 32.9 dB became 14.6. There it is asked to make the weights unsigned, which is
    exact. onnxruntime 1.32 then refuses graphs in which two layers share a zero point; of those the activations stay signed,
    as on the device. With VNNI, and on ARM, nothing changes.
    """
    import onnxruntime as ort

    providers = ["CPUExecutionProvider"]
    if not pair_sums_saturate():
        return ort.InferenceSession(model, options, providers=providers)
    severity = options.log_severity_level
    options.log_severity_level = 4
    options.add_session_config_entry(_WIDE_SUMS, "1")
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except refusals() as error:
        # The message is all that tells this refusal from others.
        if "AddInitializedOrtValue" not in str(error):
            raise
    options.log_severity_level = severity
    options.add_session_config_entry(_WIDE_SUMS, "0")
    options.add_session_config_entry(_KEEP_SIGNED, "1")
    return ort.InferenceSession(model, options, providers=providers)


def refusals() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises for a model or a sample that it does not take.

    Its own classes share no base below `Exception`; Python's come from its wrapper, and from what C++ throws below it.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, IndexError, OverflowError)


@functools.cache
def pair_sums_saturate(facts: Path = _CPU_FACTS) -> bool:
    """Return whether this host is an x86 without VNNI, as far as `facts` tells; `False` where it cannot be read."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        flags = facts.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"\b(avx512_?vnni|avx_vnni|avxvnni)\b", flags) is None

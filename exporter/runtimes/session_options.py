"""What every onnxruntime session here is told, so that a verdict does not depend on which x86 the host has."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path
from typing import Any

_CPU_FACTS = Path("/proc/cpuinfo")
_KEEP_SIGNED = "session.qdqisint8allowed"


def keep_device_arithmetic(options: Any) -> None:
    """Tell the session `options` to compute as ARM does, on hosts that otherwise would not.

    On x86 onnxruntime turns int8 activations into uint8, and without VNNI its kernels add neighbouring uint8 × int8 products
    in 16 bits that saturate: the demo's 32.9 dB became 14.6. Where VNNI is missing, activations stay signed, as on the
    device; elsewhere, and on ARM, nothing changes. (`session.x64quantprecision` is meant for this, and refuses graphs in
    which two layers share a weight's zero point: onnxruntime 1.32.)
    """
    if pair_sums_saturate():
        options.add_session_config_entry(_KEEP_SIGNED, "1")


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

"""What LiteRT's `benchmark_model` and `onnxruntime_perf_test` print, read into one form.

The formats are those of TensorFlow's `benchmark_model.cc` and `stats_calculator.h`, which LiteRT shares, and of
onnxruntime's `performance_runner.cc`, of several years: what an older program does not tell is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from exporter.errors import DeviceError
from targets.devices.base import last_line

_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,15})?(?:e[+-]?[0-9]{1,2})?)"
_US = 1e-3
_S = 1e3
_MIB = 1.048576


@dataclass(frozen=True, slots=True)
class Told:
    """The figures of one run of a program: times of single inferences in ms, memory in MB, the number of inferences."""

    runs: int
    mean_ms: float
    load_ms: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    std_ms: float | None = None
    peak_rss_mb: float | None = None


def read_output(runtime: str, output: str) -> Told:
    """Return what the program of `runtime` (`litert` or `onnxruntime`) told in `output`.

    Raises `DeviceError` (18) if it told no times, or did not come to its end.
    """
    told = _litert(output) if runtime == "litert" else _onnxruntime(output)
    if told is None:
        raise DeviceError(
            f"the benchmark program told no times: {last_line(output)}",
            fix="run it by hand on the phone; its options may have changed",
        )
    return told


def _litert(output: str) -> Told | None:
    """Read the last line of counts (the one before it is the warm-up) and the summary that ends a run."""
    summary = re.search(r"inference timings in us: (.*)", output, re.IGNORECASE)
    if summary is None:
        return None
    counts = re.findall(r"\bcount=[0-9].*", output[: summary.start()])
    counted = counts[-1] if counts else ""
    runs = _figure(r"\bcount=", counted)
    mean = _figure(r"\bavg=", counted, _US)
    if mean is None:  # every inference took the same number of microseconds
        mean = _figure(r"\bcurr=", counted, _US)
    if not runs or mean is None:
        return None
    return Told(
        runs=int(runs),
        mean_ms=mean,
        load_ms=_figure(r"\bInit: ", summary[1], _US),
        first_ms=_figure(r"\bFirst inference: ", summary[1], _US),
        p50_ms=_figure(r"\bmedian=", counted, _US),
        std_ms=_figure(r"\bstd=", counted, _US),
        peak_rss_mb=_figure(r"Overall peak memory footprint \(MB\) via periodic monitoring: ", output, _MIB),
    )


def _onnxruntime(output: str) -> Told | None:
    """Read the summary, which is in seconds but for the mean and the first inference."""
    runs = _figure(r"^(?:Total inference requests|Runs): ?", output)
    mean = _figure(r"^Average inference time cost(?: total)?: ?", output)
    if not runs or mean is None:
        return None
    return Told(
        runs=int(runs),
        mean_ms=mean,
        load_ms=_figure(r"^Session creation time cost: ?", output, _S),
        first_ms=_figure(r"^First inference time cost: ?", output),
        p50_ms=_figure(r"^P50 Latency: ?", output, _S),
        p90_ms=_figure(r"^P90 Latency: ?", output, _S),
        p99_ms=_figure(r"^P99 Latency: ?", output, _S),
        peak_rss_mb=_figure(r"^Peak working set size: ?", output, 1e-6),
    )


def _figure(name: str, text: str, scale: float = 1.0) -> float | None:
    found = re.search(name + _NUMBER, text, re.MULTILINE)
    return None if found is None else float(found[1]) * scale

"""Measure what calibration costs: ours, a plain float pass, and onnxruntime's own calibrator (Percentile).

Every case runs in a process of its own, one after another, on the same ResNet-50 (random weights), the same
pictures and the same number of threads; peak memory is that of the process. The plain pass runs twice,
before and after ours, so that a busy machine shows.

    python scripts/bench_calibration.py [--quick] [--threads N] [--json]

With one thread the time bound is judged on processor time, which other work on the machine does not stretch; with more, on
the clock, because idle threads of onnxruntime spin. Exits 1 when ours misses its bounds: 1.6 times the time of a plain
pass, 400 MB above its peak, flat in the number of samples, 2 s of one core for the ranges of all tensors by every rule.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

OBSERVED_OPERATORS = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Relu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
)
TIME_BOUND = 1.6
MEMORY_BOUND_MB = 400.0
GROWTH_BOUND_MB = 50.0
RULES_BOUND_S = 2.0
WARM_UP = 2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small network and few samples: proves that it runs, no figures",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    side, few, many, theirs = (32, 2, 6, 2) if options.quick else (224, 16, 64, 16)
    model = options.cache / f"resnet-{'quick' if options.quick else '50'}.onnx"
    if options.case:
        print(json.dumps(CASES[options.case](model, side, options.samples, options.threads)))
        return 0
    if not model.exists():
        export(model, side, quick=options.quick)
    plan = [("plain", many), ("ours", few), ("ours", many), ("plain", many), ("onnxruntime", theirs)]
    runs = []
    for case, samples in plan:
        print(f"running {case} on {samples} samples …", file=sys.stderr)
        runs.append({"case": case, "samples": samples, **measured(options, case, samples)})
    figures = summarise(runs, options.threads)
    print(
        json.dumps({"runs": runs, **figures}, indent=2)
        if options.json
        else table(runs, figures, options.threads, quick=options.quick)
    )
    return 0 if options.quick or figures["within_bounds"] else 1


def export(path: Path, side: int, *, quick: bool) -> None:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    small: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]} if quick else {}
    network = ResNetForImageClassification(ResNetConfig(num_labels=1000, **small)).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        network,
        (torch.randn(2, 3, side, side),),
        input_names=["image"],
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
    )
    if program is None:
        raise RuntimeError("torch gave no ONNX program")
    partial = path.with_suffix(".partial")
    program.save(str(partial))
    partial.replace(path)


def measured(options: argparse.Namespace, case: str, samples: int) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--case",
        case,
        "--samples",
        str(samples),
        "--threads",
        str(options.threads),
    ]
    command += ["--cache", str(options.cache), *(["--quick"] if options.quick else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def pictures(side: int, samples: int) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(samples):
        yield {"image": rng.standard_normal((1, 3, side, side), dtype=np.float32)}


def observed(model: Path) -> list[str]:
    """Inputs and outputs of every operator that a quantiser may ask about; weights left out."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    chosen = [node for node in graph.node if node.op_type in OBSERVED_OPERATORS]
    names = [name for node in chosen for name in (*node.input, *node.output) if name and name not in weights]
    return list(dict.fromkeys(names))


def run_plain(model: Path, side: int, samples: int, threads: int) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    passes = Stopwatch()
    for sample in pictures(side, samples):
        session.run(None, sample)
        passes.lap()
    return passes.figures()


def run_ours(model: Path, side: int, samples: int, threads: int) -> dict[str, Any]:
    from calibration.collect import collect
    from calibration.dataset import StreamDataset
    from calibration.ranges import Rule

    dataset = StreamDataset(lambda: pictures(side, samples), "random pictures")
    names = observed(model)
    passes = Stopwatch()
    statistics = collect(model, names, dataset, threads=threads, progress=lambda *_: passes.lap())
    rules = {}
    for rule in Rule:
        started = time.process_time()
        for name in names:
            statistics.range_of(name, rule)
        rules[rule.value] = time.process_time() - started
    return {**passes.figures(), "tensors": len(names), "rule_seconds": rules}


def run_onnxruntime(model: Path, side: int, samples: int, threads: int) -> dict[str, Any]:
    """onnxruntime's calibrator keeps every activation of every sample until the end."""
    import onnxruntime
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = pictures(side, samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    augmented = model.with_name("augmented.onnx")
    calibrator = create_calibrator(
        model,
        list(OBSERVED_OPERATORS),
        str(augmented),
        CalibrationMethod.Percentile,
        extra_options={"symmetric": False},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its own session takes every core; the comparison is on equal threads.
    calibrator.infer_session = onnxruntime.InferenceSession(
        augmented, options, providers=["CPUExecutionProvider"]
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    calibrator.collect_data(Reader())
    calibrator.compute_data()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    augmented.unlink()
    return {
        "seconds_per_sample": seconds / samples,
        "cpu_seconds_per_sample": cpu_seconds / samples,
        "peak_mb": peak_mb(),
    }


class Stopwatch:
    """Median seconds between laps, on the clock and on the processor.

    The first few are left out: the allocator and the caches are cold then.
    """

    def __init__(self) -> None:
        self.laps: list[tuple[float, float]] = []
        self.lap()

    def lap(self) -> None:
        self.laps.append((time.perf_counter(), time.process_time()))

    def figures(self) -> dict[str, Any]:
        warm = self.laps[min(WARM_UP, len(self.laps) - 2) :]
        clock, processor = np.median(np.diff(warm, axis=0), axis=0)
        return {
            "seconds_per_sample": float(clock),
            "cpu_seconds_per_sample": float(processor),
            "peak_mb": peak_mb(),
        }


def peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux it starts from the peak of the process that forked this one.
        lines = status.read_text().splitlines()
        return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def summarise(runs: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    plain = [run for run in runs if run["case"] == "plain"]
    few, many = (run for run in runs if run["case"] == "ours")
    seconds = sum(run["seconds_per_sample"] for run in plain) / len(plain)
    peak = max(run["peak_mb"] for run in plain)
    cpu_seconds = sum(run["cpu_seconds_per_sample"] for run in plain) / len(plain)
    figures = {
        "cpu_ratio": many["cpu_seconds_per_sample"] / cpu_seconds,
        "time_ratio": many["seconds_per_sample"] / seconds,
        "peak_above_plain_mb": many["peak_mb"] - peak,
        "growth_mb": many["peak_mb"] - few["peak_mb"],
        "all_rules_seconds": sum(many["rule_seconds"].values()),
    }
    figures["within_bounds"] = bool(
        figures["cpu_ratio" if threads == 1 else "time_ratio"] <= TIME_BOUND
        and figures["peak_above_plain_mb"] <= MEMORY_BOUND_MB
        and figures["growth_mb"] <= GROWTH_BOUND_MB
        and figures["all_rules_seconds"] <= RULES_BOUND_S
    )
    return figures


def table(runs: list[dict[str, Any]], figures: dict[str, Any], threads: int, *, quick: bool) -> str:
    plain = [run for run in runs if run["case"] == "plain"]
    seconds = sum(run["seconds_per_sample"] for run in plain) / len(plain)
    peak = max(run["peak_mb"] for run in plain)
    cpu_seconds = sum(run["cpu_seconds_per_sample"] for run in plain) / len(plain)
    verdict = "not judged" if quick else "hold" if figures["within_bounds"] else "MISSED"
    lines = [
        f"{threads} thread(s)",
        "case           samples  ms/sample  × plain   CPU ms  × plain  peak MB  above plain",
    ]
    lines += [
        f"{run['case']:<14}{run['samples']:>8}{run['seconds_per_sample'] * 1e3:>11.1f}"
        f"{run['seconds_per_sample'] / seconds:>9.2f}"
        f"{run['cpu_seconds_per_sample'] * 1e3:>9.1f}{run['cpu_seconds_per_sample'] / cpu_seconds:>9.2f}"
        f"{run['peak_mb']:>9.0f}{run['peak_mb'] - peak:>+13.0f}"
        for run in runs
    ]
    many = [run for run in runs if run["case"] == "ours"][-1]
    rules = ", ".join(f"{rule} {spent:.2f}" for rule, spent in many["rule_seconds"].items())
    lines += [
        f"{many['tensors']} tensors; seconds for all of them by rule: {rules}; together {figures['all_rules_seconds']:.2f}",
        f"bounds (≤ {TIME_BOUND}×, ≤ +{MEMORY_BOUND_MB:.0f} MB, growth ≤ {GROWTH_BOUND_MB:.0f} MB, "
        f"rules ≤ {RULES_BOUND_S:.0f} s): " + verdict,
        "onnxruntime has fewer samples: it keeps every activation. Its seconds include compute_data().",
    ]
    return "\n".join(lines)


CASES = {"plain": run_plain, "ours": run_ours, "onnxruntime": run_onnxruntime}

if __name__ == "__main__":
    sys.exit(main())

"""What measuring costs: the probe's blocks against onnxruntime's own bare loop, in turns, on this host.

    python scripts/bench_devices.py BUNDLE [--rounds 20]

Both run the bundle's preferred `.onnx` with one thread, each in a process of its own; a round is one block of each,
first the one and then the other and in the next round the other way round. The median of the rounds' ratios is told,
with its quartiles: 1.02 means that the probe's figures are 2 % higher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from targets.assembly import assemble
from targets.devices.probe.starting import load_order
from targets.devices.probe.worker import Worker

_BLOCK_S = 0.4
_BARE = """
import statistics, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = dict(numpy.load(sys.argv[2]))
for _ in sys.stdin:
    session.run(None, feed)
    times, end = [], time.perf_counter_ns() + int(float(sys.argv[3]) * 1e9)
    while time.perf_counter_ns() < end:
        began = time.perf_counter_ns()
        session.run(None, feed)
        times.append(time.perf_counter_ns() - began)
    print(statistics.median(times) / 1e3, flush=True)
"""


def ratios(bundle: Path, rounds: int, scratch: Path) -> list[float]:
    """Return the probe's median over the bare loop's, of each round."""
    golden = json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8"))
    file = next(path for path in sorted((bundle / "models").glob("*.onnx")))
    inputs = {name: str(bundle / "golden" / path) for name, path in golden["samples"][0]["inputs"].items()}
    np.savez(scratch / "feed.npz", **{name: np.load(path) for name, path in inputs.items()})
    bare = subprocess.Popen(
        [sys.executable, "-c", _BARE, str(file), str(scratch / "feed.npz"), str(_BLOCK_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    entry = {
        "file": file.name,
        "artifact": "",
        "path": str(file),
        "samples": [{"inputs": inputs, "outputs": {}}],
    }
    (scratch / "probe.py").write_text(assemble("targets.devices.probe"), encoding="utf-8")
    worker = Worker(scratch, entry, "onnxruntime", 1)
    try:
        facts = worker.ask(load_order(entry, "onnxruntime", 1, Path("/")))
        if "failed" in facts or bare.stdin is None or bare.stdout is None:
            raise SystemExit(f"{file} cannot be run: {facts}")
        found = []
        for number in range(rounds):
            took = {}
            for who in ("bare", "probe") if number % 2 else ("probe", "bare"):
                if who == "bare":
                    bare.stdin.write("\n")
                    bare.stdin.flush()
                    took[who] = float(bare.stdout.readline())
                else:
                    answer = worker.ask({"do": "block", "seconds": _BLOCK_S, "runs": 1})
                    took[who] = statistics.median(answer["times_us"])
            found.append(took["probe"] / took["bare"])
        return found
    finally:
        worker.close()
        bare.kill()
        bare.wait()


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = ratios(options.bundle.resolve(), options.rounds, Path(scratch))
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
    print(f"probe ÷ bare loop, {len(found)} rounds: {middle:.4f} (quartiles {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()

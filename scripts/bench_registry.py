"""Delivery in figures: publish, pull, verify and bit flips, on a build of the demo.

    python scripts/bench_registry.py BUILD [--flips 1000] [--big-mb 600]

BUILD is a folder such as edge-build/digits-cnn/1.0.0. Every command runs as a process of its own, as a user would run it;
`verify` is timed in turns with `sha256sum` over the same files. Prints one line a figure and its bound; ends with 1 if
one is missed.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from exporter.bundle.manifest import rewrite_manifest
from exporter.errors import IntegrityError
from exporter.progress import Silence
from exporter.registry.checking import check_registry
from exporter.registry.stores.opening import open_store
from exporter.system.files import sorted_files

ROUNDS = 5


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain static server, as anybody has one."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def timed(command: list[str]) -> float:
    """Return the seconds that a command takes; its failure ends the script."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return time.perf_counter() - started


def tool(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "exporter", *map(str, arguments)]


def serve(root: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def publishes_and_pulls(build: Path, scratch: Path, say: Report) -> Path:
    """Time publishing into an empty folder and pulling every bundle over loopback with an empty cache."""
    seconds = []
    for number in range(ROUNDS):
        registry = scratch / f"registry{number}"
        seconds.append(timed(tool("publish", build, registry)))
    say("publish of the build", statistics.median(seconds), "s", at_most=5)
    targets = sorted(path.parent.name for path in build.glob("*/manifest.json"))
    name, version = build.parent.name, build.name
    server, url = serve(registry)
    for target in targets:
        pulls = []
        for number in range(ROUNDS):
            os.environ["XDG_CACHE_HOME"] = str(scratch / f"cache-{target}-{number}")
            out = scratch / f"out-{target}-{number}"
            pulls.append(
                timed(tool("pull", f"{name}@{version}", "--target", target, "--from", url, "--out", out))
            )
        say(f"pull for {target} over loopback", statistics.median(pulls), "s", at_most=2)
    server.shutdown()
    return registry


def verifies(build: Path, scratch: Path, big_mb: int, say: Report) -> None:
    """Time `verify` on a registry with a bundle of `big_mb`, in turns with sha256sum."""
    bundle = scratch / "big"
    shutil.copytree(build / "raspberry-pi", bundle)
    draw = random.Random(6)
    (bundle / "measured").mkdir(exist_ok=True)
    for number in range(4):
        (bundle / "measured" / f"filler-{number}.json").write_bytes(draw.randbytes(big_mb * 250_000))
    rewrite_manifest(bundle)
    registry = scratch / "big-registry"
    timed(tool("publish", bundle, registry))
    files = [str(path) for path in sorted_files(registry)]
    megabytes = sum(Path(path).stat().st_size for path in files) / 1e6
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(timed(tool("verify", registry)))
        theirs.append(timed(["sha256sum", *files]))
    say("verify", megabytes / statistics.median(ours), "MB/s", at_least=300)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    say(f"  its speed against sha256sum over the same {megabytes:.0f} MB", statistics.median(ratios), "×")


def flips(registry: Path, count: int, say: Report) -> None:
    """Flip random bits, weighted by nothing but the file: small documents are hit as often as models."""
    draw = random.Random(1000)
    files = sorted_files(registry)
    store = open_store(str(registry))
    detected = named = 0
    for _ in range(count):
        path = draw.choice(files)
        good = path.read_bytes()
        bit = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            check_registry(store, progress=Silence())
        except IntegrityError as error:
            detected += 1
            named += path.relative_to(registry).as_posix() in error.cause
        path.write_bytes(good)
    say(f"bit flips detected of {count}", detected, "", at_least=count)
    say("  of them the file named", named, "", at_least=count)
    say("files of the registry", len(files), "")
    say("its bytes", sum(path.stat().st_size for path in files) / 1e6, "MB")


class Report:
    """Prints figures beside their bounds."""

    def __init__(self) -> None:
        self.missed = 0

    def __call__(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        missed = (at_most is not None and value > at_most) or (at_least is not None and value < at_least)
        self.missed += missed
        bound = (
            f"  ≤ {at_most:g}" if at_most is not None else f"  ≥ {at_least:g}" if at_least is not None else ""
        )
        shown = f"{value:g}" if float(value).is_integer() else f"{value:.2f}"
        print(f"{name:<60} {shown:>10} {unit:<5}{bound}{'  MISSED' if missed else ''}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--big-mb", type=int, default=600)
    options = parser.parse_args()
    say = Report()
    with tempfile.TemporaryDirectory(prefix="bench-registry-") as folder:
        scratch = Path(folder)
        os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "XDG_STATE_HOME": f"{folder}/state"}
        registry = publishes_and_pulls(options.build, scratch, say)
        flips(registry, options.flips, say)
        verifies(options.build, scratch, options.big_mb, say)
    return 1 if say.missed else 0


if __name__ == "__main__":
    sys.exit(main())

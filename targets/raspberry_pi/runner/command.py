"""The command line: arguments, one report, one exit code."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from targets.raspberry_pi.runner.bundle import BUNDLE, Json, read_golden, read_json
from targets.raspberry_pi.runner.choice import SUFFIXES, choose
from targets.raspberry_pi.runner.errors import ModelError
from targets.raspberry_pi.runner.labels import top_labels
from targets.raspberry_pi.runner.latency import measure
from targets.raspberry_pi.runner.loading import load_model, needed_package, no_runtime
from targets.raspberry_pi.runner.model import DEFAULT_THREADS, Model
from targets.raspberry_pi.runner.parity import replay
from targets.raspberry_pi.runner.preparation import check_tensor, replay_pictures
from targets.raspberry_pi.runner.reports import as_text
from targets.raspberry_pi.runner.requirements import require_numpy

DESCRIPTION = (
    "Run this model on a Raspberry Pi (or any 64-bit Linux): "
    "predictions, parity, latency, and what went wrong before it."
)


def replay_all(arguments: argparse.Namespace) -> tuple[Json, int]:
    """Return the report on pictures, parity and latency, and the exit code."""
    entries = choose(read_json(BUNDLE / "models.json")["models"], arguments.model, arguments.runtime)
    golden = read_golden()
    pictures = replay_pictures(golden, read_json(BUNDLE / "preprocess.json")["contract"])
    reports = []
    for entry in entries:
        model = load_model(entry, arguments.threads)
        if model is None:
            reports.append({"model": entry["file"], "skipped": f"{needed_package(entry)} is not installed"})
            continue
        parity = replay(model, entry, golden)
        latency = measure(model, entry, golden, arguments.runs, arguments.threads)
        reports.append(
            {"model": entry["file"], "runtime": model.runtime, "parity": parity, "latency": latency}
        )
    if all("skipped" in report for report in reports):
        raise no_runtime(entries)
    verdicts = [pictures["passed"], *(report["parity"]["passed"] for report in reports if "parity" in report)]
    passed = False not in verdicts
    return {"format": 1, "passed": passed, "preprocessing": pictures, "models": reports}, 0 if passed else 14


def predict(arguments: argparse.Namespace) -> tuple[Json, int]:
    """Return the prediction of the first model that has a runtime here: the fastest, if boards like this were measured."""
    model = Model(runtime=arguments.runtime, threads=arguments.threads, model=arguments.model)
    answers = model.run(model.prepare(arguments.input))
    first = next(iter(answers))
    return {
        "format": 1,
        "model": model.file,
        "runtime": model.runtime,
        "output": first,
        "top": top_labels(answers[first], model.labels),
    }, 0


def check(arguments: argparse.Namespace) -> tuple[Json, int]:
    """Return what is wrong with somebody's own tensor, and the exit code."""
    contract = read_json(BUNDLE / "preprocess.json")["contract"]
    report = check_tensor(arguments.check_tensor, arguments.sample, contract)
    return report, 0 if report["passed"] else 14


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise ModelError("E-usage", 2, message, f"see {self.prog} --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = _Parser(description=DESCRIPTION)
    parser.add_argument(
        "picture", nargs="?", type=Path, help="a picture, or a .npy tensor that is prepared: predict"
    )
    parser.add_argument("--input", type=Path, help="the same")
    parser.add_argument(
        "--replay", action="store_true", help="replay the golden vectors (default without a picture)"
    )
    parser.add_argument(
        "--check-tensor",
        type=Path,
        metavar="X.npy",
        help="a tensor that your code prepared: name its mistake",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        help="the golden picture it was made from: golden/SAMPLE/ (default: 0)",
    )
    parser.add_argument(
        "--model", help="a file of models/, or an artifact such as onnx:static_wi8_ai8 (default: all)"
    )
    parser.add_argument("--runtime", choices=sorted(SUFFIXES), help="default: whichever is installed")
    parser.add_argument("--threads", type=_positive, default=DEFAULT_THREADS, help="default: %(default)s")
    parser.add_argument("--runs", type=_positive, default=50, help="timed inferences (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    wishes = [options.picture, options.input, options.check_tensor, options.replay or None]
    if sum(wish is not None for wish in wishes) > 1:
        parser.error("more than one of a picture, --replay and --check-tensor")
    options.input = options.input or options.picture
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    try:
        options = parse(arguments)
        require_numpy()
        action = check if options.check_tensor else predict if options.input else replay_all
        report, exit_code = action(options)
    except ModelError as error:
        sys.stderr.write(f"error[{error.code}]: {error}\n")
        return error.exit_code
    sys.stdout.write((json.dumps(report, sort_keys=True) if options.json else as_text(report)) + "\n")
    return exit_code


def command() -> int:
    """Run the command that a wheel installs."""
    return main(sys.argv[1:])

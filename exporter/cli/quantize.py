"""`edge-export quantize`: the quantiser alone, for an ONNX file and data, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli.terminal.console import Column, Console, pass_console, speaking
from exporter.cli.terminal.text import typed_path
from exporter.cli.views import figures
from exporter.cli.views.recovery import show_recoveries
from exporter.errors import UsageError
from exporter.recover.methods import METHODS
from exporter.schemes import KNOWN_SCHEMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporter.bundle.report import Report
    from exporter.jobs.quantize import Quantizing

_RULES = ("auto", "minmax", "percentile", "mse", "entropy")
_INTEGER_SCHEMES = tuple(scheme for scheme in KNOWN_SCHEMES if not scheme.startswith("float"))
_SOURCES = ("npz", "npy", "text", "python")


@click.command("quantize", short_help="Quantise an ONNX file, without a recipe.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="PATH", help="Calibration data: .npz (an array an input), .npy or a folder of them."
)
@click.option("--source", type=click.Choice(_SOURCES), help="How to read --data. Default: by its name.")
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", help="Calibrate on N of them, evenly spaced."
)
@click.option("--evaluation", metavar="PATH", help="Data to judge on. Default: the calibration data.")
@click.option("--labels", metavar="NAME", help="The array of --evaluation that holds the labels.")
@click.option("--metric", metavar="NAME|FILE.py:FUNC", help="What is scored. Default with labels: top1.")
@click.option("--scheme", type=click.Choice(_INTEGER_SCHEMES), default="static_wi8_ai8", show_default=True)
@click.option(
    "--rule", type=click.Choice(_RULES), default="auto", show_default=True, help="How ranges are chosen."
)
@click.option(
    "--max-drop", type=click.FloatRange(min=0), metavar="POINTS", help="Budget: climb until it holds."
)
@click.option(
    "--verdict",
    type=click.Choice(["measured", "significant"]),
    default="measured",
    show_default=True,
    help="significant: only a loss beyond the noise of the evaluation data breaks the budget.",
)
@click.option(
    "--keep", "keep", multiple=True, metavar="PATTERN", help="Operators that stay float; repeatable."
)
@click.option(
    "--keep-from", type=click.Path(path_type=Path), metavar="FILE", help="A list of them, one a line."
)
@click.option(
    "--recover",
    "methods",
    multiple=True,
    type=click.Choice(tuple(METHODS)),
    help="Always apply this method, in the order given; repeatable.",
)
@click.option("--conv-int4", is_flag=True, help="Store convolutions in four bits too (smaller, not faster).")
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="From edge-export calibrate, instead of --data.",
)
@click.option("--min-sqnr-db", type=float, metavar="DB", help="Fidelity floor. Default: 10.")
@click.option(
    "--report", "report_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the report too."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="OUT.onnx"
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Check everything that can be checked early; make nothing."
)
@speaking
@pass_console
def command(
    console: Console, /, *, model: Path, out: Path, only_plan: bool, report_path: Path | None, **given: Any
) -> None:
    """Quantise MODEL (.onnx, float32) to OUT.onnx and measure what that cost; nothing is written unless it holds.

    The same engine as `build`: ranges from calibration, recovery within a budget, gates, a report.
    """
    from exporter.jobs.quantize import plan_of

    request = _request(model, out, given)
    plan = plan_of(request)
    if only_plan:
        from exporter.cli.views.plan import show_plan

        show_plan(console, plan, f"edge-export quantize {typed_path(model)} ... -o {typed_path(out)}")
        return
    with console.work() as (progress, log):
        with progress.step("load the frameworks"):
            from exporter.jobs.quantize import quantize_file
        report = quantize_file(plan, request, progress=progress, log=log)
    if report_path is not None:
        from exporter.system.files import write_json

        write_json(report_path, report.document())
    if console.json:
        console.answer_json({"path": str(out), "report": report.document()})
        return
    _show(console, out, report)


def _request(model: Path, out: Path, given: Mapping[str, Any]) -> Quantizing:
    from exporter.jobs.quantize import Quantizing

    data: dict[str, Any] = {}
    if given["data"] is not None:
        data["calibration"] = _table(given["data"], given["source"], samples=given["samples"])
    elif given["samples"] is not None or given["source"] is not None:
        raise UsageError("--samples and --source speak of --data, and there is none", fix="add --data PATH")
    if given["evaluation"] is not None:
        data["evaluation"] = _table(given["evaluation"], given["source"], labels=given["labels"])
    elif given["labels"] is not None:
        raise UsageError(
            "--labels names an array of --evaluation, and there is none", fix="add --evaluation PATH"
        )
    if given["metric"] is not None:
        data["metric"] = given["metric"]
    quantize: dict[str, Any] = {
        "scheme": given["scheme"],
        "rule": given["rule"],
        "keep": list(given["keep"]),
        "recover": list(given["methods"]),
        "max_drop": given["max_drop"],
        "max_drop_verdict": given["verdict"],
        "conv_int4": given["conv_int4"],
    }
    if given["keep_from"] is not None:
        quantize["keep_from"] = str(given["keep_from"])
    if given["statistics"] is not None:
        data["statistics"] = str(given["statistics"])
    return Quantizing(model, out, data, quantize, given["min_sqnr_db"])


def _table(path: str, source: str | None, **more: Any) -> dict[str, Any]:
    """Return the `[data]` table that reads `path`, its kind told by its name where `source` does not."""
    key = "callable" if source == "python" or (source is None and ":" in Path(path).name) else "path"
    kind = source or ("python" if key == "callable" else _kind_of(path))
    return {"source": kind, key: path} | {name: value for name, value in more.items() if value is not None}


def _kind_of(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        return "npz"
    if suffix == ".npy" or Path(path).is_dir():
        return "npy"
    raise UsageError(
        f"--data {path}: its name does not say how to read it",
        fix="give an .npz, an .npy, a folder of .npy files, or --source",
    )


def _show(console: Console, out: Path, report: Report) -> None:
    artifact = report.artifacts[0]
    evidence, scheme = artifact.evidence, artifact.scheme
    fidelity, task, latency = evidence.fidelity, evidence.task, evidence.latency
    drop = task.interval if task else evidence.disagreement
    before = report.model.float_latency
    console.heading(str(out), f"{scheme}, from {figures.byte_size(report.model.float_bytes)} as float32")
    show_recoveries(console, report.recovery)
    console.answer()
    rows = [
        ["size", f"{figures.byte_size(artifact.size_bytes)}, {figures.times(artifact.times_smaller)} smaller"],
        ["operators", f"{artifact.coverage.quantized} of {artifact.coverage.operators} quantised, "
                      f"{figures.share(artifact.coverage.mac_share)} of the MACs"],
    ]  # fmt: skip
    if fidelity:
        rows.append(["SQNR", f"{figures.decibels(fidelity.sqnr_db)} dB over {fidelity.samples} samples"])
    if task:
        rows.append([task.metric, f"{task.value:.4f}, float {task.reference:.4f}"])
    if drop:
        what = "points lost" if task else "points of agreement lost"
        rows.append([what, f"{drop.points:.2f} (95 % interval {drop.low:.2f} to {drop.high:.2f})"])
    if latency and before:
        rows.append(["host p50", f"{figures.milliseconds(latency.p50_ms)} ms, float "
                                 f"{figures.milliseconds(before.p50_ms)} ms; never a device's latency"])  # fmt: skip
    console.answer_table([Column("", fold=False), Column("")], rows)
    left = [f"{count} × {reason}" for reason, count in artifact.coverage.left_float.items()]
    console.answer_list("left in float", left)
    console.answer_list("notes", [*report.findings, *artifact.notes])

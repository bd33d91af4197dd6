"""`edge-export calibrate`: a statistics file from a model and data; shards of it merged; what a file holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli.terminal.console import Column, Console, pass_console, speaking
from exporter.cli.terminal.text import typed_path
from exporter.cli.views import figures
from exporter.errors import UsageError

if TYPE_CHECKING:
    from calibration.statistics import Statistics

_RULES = ("auto", "minmax", "percentile", "mse", "entropy")
_SOURCES = ("npz", "npy", "images", "text", "python")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_STATISTICS = click.Path(path_type=Path)
_OUT = click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="OUT.stats"
)


class _Calibrate(click.Group):
    """A group whose `run` need not be spelled: `calibrate MODEL ...` is `calibrate run MODEL ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` in front unless a command, or help for all of them, was asked for."""
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("calibrate", cls=_Calibrate, short_help="Collect activation statistics of a model into a file.")
def command() -> None:
    """Run a float model over data and keep what its activations were: `calibrate MODEL --data PATH -o OUT.stats`.

    The file serves every rule and static scheme later: edge-export quantize --statistics OUT.stats. Shards of one
    data set, calibrated on different machines, merge to the very bytes of an unsharded run.
    """


@command.command("run", short_help="Calibrate MODEL; the word run may be left out.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx|RECIPE.toml")
@click.option(
    "--data", metavar="PATH", help="Calibration data for MODEL.onnx: a file, a folder, or FILE.py:FUNC."
)
@click.option("--data-source", type=click.Choice(_SOURCES), help="How to read --data. Default: by its name.")
@click.option("--tokenizer", metavar="FILE", help="The tokenizer.json that --data-source text needs.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Use N of them, evenly spaced.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N shards: samples I-1, I-1+N, ...")
@click.option("--max-memory", metavar="SIZE", help="Observe no more than this at once, such as 2GB.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run left beside OUT.stats.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="N", help="Default: one a core.")
@_OUT
@speaking
@pass_console
def run(
    console: Console,
    /,
    *,
    model: Path,
    out: Path,
    shard: str | None,
    max_memory: str | None,
    resume: bool,
    threads: int,
    **data: Any,
) -> None:
    """Observe every activation that a static scheme could quantise, sample by sample, and write OUT.stats.

    An interrupted run leaves a checkpoint at most 10 s old; --resume goes on from there to the same bytes.
    """
    cut = (1, 1) if shard is None else read_shard(shard)
    size = None if max_memory is None else read_size(max_memory)
    table = _table(**data)
    with console.work() as (progress, log):
        with progress.step("load the frameworks"):
            from exporter.jobs.calibrate import Calibrating, calibrate_file, plan_of
        request = Calibrating(model, out, table, cut, size, resume, threads)
        statistics = calibrate_file(request, plan_of(request), progress=progress, log=log)
    _answer(console, out, statistics)


@command.command("merge", short_help="Make one file of all shards, or of several data sets.")
@click.argument("paths", nargs=-1, required=True, type=_STATISTICS, metavar="FILE...")
@_OUT
@speaking
@pass_console
def merge(console: Console, *, paths: tuple[Path, ...], out: Path) -> None:
    """Merge statistics of one model; refuses, by name, shards that are missing or there twice."""
    from exporter.jobs.calibrate import merge_files

    _answer(console, out, merge_files(paths, out))


@command.command("show", short_help="Show what a statistics file holds, tensor by tensor.")
@click.argument("path", type=_STATISTICS, metavar="FILE")
@click.option("--rule", type=click.Choice(_RULES), default="auto", show_default=True, help="Ranges by this.")
@speaking
@pass_console
def show(console: Console, *, path: Path, rule: str) -> None:
    """Show of each tensor what was seen, its range by a rule, and the share of elements that the range clips."""
    from calibration.statistics import Statistics
    from exporter.system.files import require_file

    statistics = Statistics.load(require_file(path, what="the statistics file"))
    tensors = _describe(statistics, rule)
    if console.json:
        console.answer_json({**_summary(statistics), "rule": rule, "tensors": tensors})
        return
    _show_summary(console, path, statistics)
    columns = [
        Column("tensor"),
        *(Column(name, right=True) for name in ("min", "max", "low", "high", "clipped")),
    ]
    rows = [
        [
            row["name"],
            *(_number(row[key]) for key in ("minimum", "maximum", "low", "high")),
            _share(row["clipped"]),
        ]
        for row in tensors
    ]
    console.answer_table(columns, rows)


def read_shard(text: str) -> tuple[int, int]:
    """Return (i, n) of `i/n` with 1 ≤ i ≤ n; `UsageError` for anything else."""
    if re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text):
        number, count = (int(part) for part in text.split("/"))
        if 1 <= number <= count:
            return number, count
    raise UsageError(f"--shard {text!r} is no shard", fix="write the first of four as 1/4, the last as 4/4")


def read_size(text: str) -> int:
    """Return the bytes that `2GB`, `500 MB` or `1000` spell (decimal units); `UsageError` for anything else."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError(f"--max-memory {text!r} is no size", fix="write it like 2GB or 500MB")
    return size


def _table(
    *, data: str | None, data_source: str | None, tokenizer: str | None, samples: int | None
) -> dict[str, Any] | None:
    """Return the `[data] calibration` table that the options spell; `None` without --data."""
    more = {"tokenizer": tokenizer, "samples": samples}
    if data is None:
        given = data_source is not None or any(value is not None for value in more.values())
        if given:
            raise UsageError(
                "--data-source, --tokenizer and --samples speak of --data, and there is none",
                fix="add --data PATH",
            )
        return None
    kind = data_source or _kind_of(data)
    key = "callable" if kind == "python" else "path"
    return {"source": kind, key: data} | {name: value for name, value in more.items() if value is not None}


def _kind_of(data: str) -> str:
    name = Path(data).name
    suffix = Path(data).suffix.lower()
    if suffix == ".npz":
        return "npz"
    if suffix == ".npy" or Path(data).is_dir():
        return "npy"
    if ".py:" in name:
        return "python"
    raise UsageError(
        f"--data {data}: its name does not say how to read it",
        fix=f"add --data-source {', '.join(_SOURCES)}",
    )


def _summary(statistics: Statistics) -> dict[str, Any]:
    shards = statistics.shards
    return {
        "model_sha256": statistics.model_sha256,
        "dataset_fingerprint": statistics.dataset_fingerprint,
        "samples": statistics.samples,
        "shards": None if shards is None else str(shards),
        "tool_version": statistics.tool_version,
        "tensor_count": len(statistics.sketches),
    }


def _answer(console: Console, out: Path, statistics: Statistics) -> None:
    if console.json:
        console.answer_json({"path": str(out), **_summary(statistics)})
        return
    _show_summary(console, out, statistics)
    if statistics.shards is None:
        console.answer_commands("next", [f"edge-export calibrate show {typed_path(out)}"])


def _show_summary(console: Console, path: Path, statistics: Statistics) -> None:
    shards = "" if statistics.shards is None else f", shard {statistics.shards}"
    console.heading(
        str(path), f"{len(statistics.sketches)} tensors over {statistics.samples} samples{shards}"
    )
    console.answer_pairs(
        [
            ("model", statistics.model_sha256[:16]),
            ("data", statistics.dataset_fingerprint[:16]),
            ("made by", f"edge-exporter {statistics.tool_version}"),
            ("size", figures.byte_size(path.stat().st_size)),
        ]
    )


def _describe(statistics: Statistics, rule: str) -> list[dict[str, Any]]:
    """Return the figures of every tensor, by name; one that was never seen has none."""
    from calibration.ranges import clipped_share

    rows: list[dict[str, Any]] = []
    for name, sketch in sorted(statistics.sketches.items()):
        row: dict[str, Any] = {"name": name, "elements": sketch.count}
        row |= dict.fromkeys(("minimum", "maximum", "low", "high", "clipped"))
        if sketch.count:
            clip = statistics.range_of(name, rule)
            row |= {"minimum": sketch.minimum, "maximum": sketch.maximum, "low": clip.low, "high": clip.high}
            row["clipped"] = clipped_share(sketch, clip)
        rows.append(row)
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.3g} %"

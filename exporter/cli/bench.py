"""`edge-export bench`: what a bundle's artifacts take on a device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from exporter.cli import figures
from exporter.cli.console import Column, Console, pass_console, speaking
from exporter.errors import UsageError

_RUNTIMES = ("onnxruntime", "litert")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "": 1.0}
_LONGEST_S, _MOST_THREADS = 3600.0, 256


@click.command("bench", short_help="Measure a bundle on this host, a Raspberry Pi or an emulated core.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "where",
    required=True,
    metavar="WHERE",
    help="local, ssh://[USER@]HOST[:PORT], or emulated:cortex-a53|a72|a76.",
)
@click.option(
    "--artifact", "files", multiple=True, metavar="A", help="Only this file or artifact; repeatable."
)
@click.option("--runtime", type=click.Choice(_RUNTIMES), help="Only this one. Default: all that are there.")
@click.option("--threads", default="1,2,4", show_default=True, metavar="N,N,...", help="Numbers to try.")
@click.option(
    "--duration", default="10s", show_default=True, metavar="TIME", help="Of each file, runtime and number."
)
@click.option("--python", default="python3", show_default=True, metavar="PATH", help="Python on the device.")
@click.option(
    "--bootstrap",
    "way",
    is_flag=False,
    flag_value="online",
    type=click.Choice(("online", "carry")),
    help="Make an environment with the runtimes there (ssh://) and measure with it. carry: this host fetches the wheels "
    "for a device without network.",
)
@click.option("--keep", is_flag=True, help="Leave models, golden arrays and the probe on the device.")
@click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Instead of ~/.ssh/config.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON too."
)
@speaking
@pass_console
def command(
    console: Console,
    /,
    *,
    bundle: Path,
    where: str,
    files: tuple[str, ...],
    runtime: str | None,
    threads: str,
    duration: str,
    python: str,
    way: str | None,
    keep: bool,
    ssh_config: Path | None,
    out: Path | None,
) -> None:
    """Time every artifact of BUNDLE on a device, in turns, and check its answers there.

    The device needs Python 3.9 with numpy and onnxruntime or ai-edge-litert; nothing is installed and nothing is left
    behind. With --bootstrap it needs only Python with venv: an environment with the bundle's runtimes is made below
    ~/.cache/edge-exporter there, and used again next time. A block in which the board was throttled counts for nothing
    and is repeated.

    An emulated core runs the real aarch64 runtimes and gives the number of ARM instructions of one inference, never a
    time. Its first use downloads about 100 MB from Debian and PyPI into ~/.cache/edge-exporter.
    """
    counts, seconds = read_threads(threads), read_duration(duration)
    with console.work() as (progress, _):
        with progress.step("load the devices"):
            from exporter.benching import Wishes, bench_bundle, require_parity
            from exporter.files import write_json
            from exporter.outfitting import outfit
            from targets.devices import SshOptions, open_device
        device = open_device(where, SshOptions(ssh_config, python), progress.say)
        wishes = Wishes(counts, seconds, runtime, files, keep=keep)
        if way is not None:
            device = outfit(bundle, device, wishes, way, progress=progress)
        report = bench_bundle(bundle, device, wishes, progress=progress)
        if out is not None:
            write_json(out, report)
        require_parity(report)
    if console.json:
        console.answer_json(report)
    else:
        _show(console, report)


def read_threads(text: str) -> tuple[int, ...]:
    """Return the numbers of `1,2,4`; `UsageError` for anything else."""
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3}){0,15}", text):
        counts = tuple(sorted({int(part) for part in text.split(",")}))
        if counts[0] >= 1 and counts[-1] <= _MOST_THREADS:
            return counts
    raise UsageError(f"--threads {text!r} are no numbers of threads", fix="write them like 1,2,4")


def read_duration(text: str) -> float:
    """Return the seconds that `500ms`, `10s`, `2m` or `10` spell; `UsageError` for anything else."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"--duration {text!r} is no time up to an hour", fix="write it like 10s or 2m")
    return seconds


def _show(console: Console, report: Mapping[str, Any]) -> None:
    device = report["device"]
    name = device["board"] or device["cpu"] or device["machine"]
    versions = sorted({f"{item['runtime']} {item['version']}" for item in report["measurements"]})
    console.heading(
        f"{report['model']} on {report['where']}",
        f"{name}, kernel {device['kernel']}, {', '.join(versions)}",
    )
    console.answer()
    if any(item["instructions_m"] is not None for item in report["measurements"]):
        _show_counts(console, report)
        return
    columns = (
        Column("artifact", fold=False),
        Column("runtime", fold=False),
        *(
            Column(title, right=True, fold=False)
            for title in ("threads", "p50\nms", "p90\nms", "first\nms", "load\nms", "noise", "peak\nMB")
        ),
        Column("answers", fold=False),
    )
    console.answer_table(columns, [_row(item) for item in report["measurements"]])
    fastest = report["fastest"]
    notes = [f"{item['file']}: did not run: {item['why']}" for item in report["skipped"]]
    if fastest is not None:
        notes.insert(
            0, f"fastest here: {fastest['file']} in {fastest['runtime']}, {_threads(fastest['threads'])}"
        )
    throttled = [item for item in report["measurements"] if item["throttled"]]
    if report["kept"]:
        notes.append(f"kept on the device: {report['kept']}")
    if throttled:
        notes.append("blocks were throttled (heat or voltage): their times were thrown away")
    if report["measurements"] and all(item["throttled"] is None for item in report["measurements"]):
        notes.append("this device cannot say whether it was throttled")
    console.answer_list("notes", notes)


def _show_counts(console: Console, report: Mapping[str, Any]) -> None:
    columns = (
        Column("artifact", fold=False),
        Column("runtime", fold=False),
        Column("million\ninstructions", right=True, fold=False),
        Column("answers", fold=False),
    )
    rows = [
        [
            item["artifact"],
            item["runtime"],
            f"{item['instructions_m']:.2f}",
            "same" if item["parity"]["passed"] else "WRONG",
        ]
        for item in report["measurements"]
    ]
    console.answer_table(columns, rows)
    notes = ["instructions of one inference with one thread; how long they take, only a board can say"]
    notes += [f"{item['file']}: did not run: {item['why']}" for item in report["skipped"]]
    if report["kept"]:
        notes.append(f"kept: {report['kept']}")
    console.answer_list("notes", notes)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _row(item: Mapping[str, Any]) -> list[str]:
    def number(key: str) -> str:
        return figures.ABSENT if item[key] is None else f"{item[key]:.3g}"

    return [
        item["artifact"],
        item["runtime"],
        str(item["threads"]),
        "throttled" if item["p50_ms"] is None else number("p50_ms"),
        *(number(key) for key in ("p90_ms", "first_ms", "load_ms")),
        figures.ABSENT if item["noise"] is None else f"{100 * item['noise']:.0f} %",
        figures.ABSENT if item["peak_rss_mb"] is None else f"{item['peak_rss_mb']:.0f}",
        "same" if item["parity"]["passed"] else "WRONG",
    ]

"""`edge-export bench`: what a bundle's artifacts take on a device."""

from __future__ import annotations

import re
from pathlib import Path

import click

from exporter.bundle.measured import require_name
from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.terminal.text import typed_path
from exporter.cli.views.bench import show_bench
from exporter.errors import UsageError

_RUNTIMES = ("onnxruntime", "litert")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "": 1.0}
_LONGEST_S, _MOST_THREADS = 3600.0, 256


@click.command(
    "bench", short_help="Measure a bundle on this host, a Raspberry Pi, a phone or an emulated core."
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "where",
    required=True,
    metavar="WHERE",
    help="local, ssh://[USER@]HOST[:PORT], adb[:SERIAL], or emulated:cortex-a53|a72|a76.",
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
    "--benchmark",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="On a phone: LiteRT's benchmark_model or onnxruntime_perf_test instead of Termux's Python.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Time another bundle's same artifacts in turns with this one's.",
)
@click.option(
    "--profile", is_flag=True, help="Also where the time goes: operators, layers, int8 against float."
)
@click.option("--as", "name", metavar="NAME", help="What to call the device. Default: as it calls itself.")
@click.option("--attach/--no-attach", default=True, show_default=True, help="Keep the result in the bundle.")
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
    benchmark: Path | None,
    against: Path | None,
    profile: bool,
    name: str | None,
    attach: bool,
    out: Path | None,
) -> None:
    """Time every artifact of BUNDLE on a device, in turns, and check its answers there.

    The device needs Python 3.9 with numpy and onnxruntime or ai-edge-litert; nothing is installed and nothing is left
    behind. With --bootstrap it needs only Python with venv: an environment with the bundle's runtimes is made below
    ~/.cache/edge-exporter there, and used again next time. A block in which the board was throttled counts for nothing
    and is repeated.

    An emulated core runs the real aarch64 runtimes and gives the number of ARM instructions of one inference, never a
    time. Its first use downloads about 100 MB from Debian and PyPI into ~/.cache/edge-exporter.

    The result is kept in the bundle under the device's name, where `inspect`, `compare` and `check` read it; it tells
    the board, not whose it is. `check` holds it against the recipe's budget and a lock file.
    """
    counts, seconds = read_threads(threads), read_duration(duration)
    if name is not None:
        require_name(name)
    with console.work() as (progress, _):
        with progress.step("load the devices"):
            from exporter.benching import Wishes, bench_bundle, require_parity
            from exporter.benching.outfitting import outfit
            from exporter.bundle.measured import attach as attach_record
            from exporter.bundle.measured import device_name
            from exporter.system.files import write_json
            from targets.devices import SshOptions, open_device
        device = open_device(where, SshOptions(ssh_config, python), progress.say, benchmark)
        wishes = Wishes(counts, seconds, runtime, files, against=against, profile=profile, keep=keep)
        if way is not None:
            device = outfit(bundle, device, wishes, way, progress=progress)
        report = bench_bundle(bundle, device, wishes, progress=progress)
        if out is not None:
            write_json(out, report)
        if attach:
            attach_record(bundle, device_name(report, name), report)
        require_parity(report)
    if console.json:
        console.answer_json(report)
    else:
        show_bench(console, report)
        if attach:
            _show_budget(console, bundle, device_name(report, name))


def _show_budget(console: Console, bundle: Path, name: str) -> None:
    from exporter.checking.figures import read_figures
    from exporter.checking.verdicts import State, judge

    verdicts = [item for item in judge(read_figures(bundle), None) if item.device == name and item.limit]
    marks = {State.FAILED: "over budget", State.PASSED: "within budget", State.UNMEASURED: "not measured"}
    console.answer_list("budget", [f"{marks[item.state]}: {item.sentence}" for item in verdicts])
    console.answer_commands("next", [f"edge-export check {typed_path(bundle)}"])


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

"""`edge-export check`: is this build still within its budget, and no worse than the one accepted last?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.terminal.console import Column, Console, pass_console, speaking
from exporter.cli.views import figures
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.checking.verdicts import Verdict

_OUT = click.Path(path_type=Path, dir_okay=False)


@click.command("check", short_help="Hold bundles against their budget and a lock file.")
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="BUNDLE...")
@click.option(
    "--lock",
    "lock_path",
    type=_OUT,
    default=Path("edge.lock.json"),
    show_default=True,
    metavar="FILE",
    help="The accepted figures; commit it.",
)
@click.option("--update", is_flag=True, help="Accept what there is: write the lock.")
@click.option(
    "--device", "devices", multiple=True, metavar="NAME", help="Only what this device measured; repeatable."
)
@click.option("--strict", is_flag=True, help="What was not measured fails too.")
@click.option("--junit", "junit_path", type=_OUT, metavar="FILE", help="Write JUnit XML for a build server.")
@click.option(
    "--markdown", "markdown_path", type=_OUT, metavar="FILE", help="Write a table for a pull request."
)
@speaking
@pass_console
def command(
    console: Console,
    /,
    *,
    bundles: tuple[Path, ...],
    lock_path: Path,
    update: bool,
    devices: tuple[str, ...],
    strict: bool,
    junit_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Hold BUNDLEs, or whole builds, against [targets.NAME.budget] and against a lock file.

    Size, metric, fidelity, and what `bench` measured on each device: latency, memory, instructions. The first broken
    line ends with exit code 14. How much worse a figure may become stands in the lock file, under "allow".
    """
    from exporter.bundle.manifest import check_manifest
    from exporter.checking.documents import junit, markdown
    from exporter.checking.figures import bundles_in, read_figures
    from exporter.checking.lock import accepted, empty_lock, read_lock, write_lock
    from exporter.checking.verdicts import judge, require_passed
    from exporter.system.files import write_bytes

    with console.work() as (progress, _):
        found = bundles_in(bundles)
        with progress.step("hashing files", len(found)) as advance:
            for number, bundle in enumerate(found, start=1):
                check_manifest(bundle)
                advance(number)
        facts = [read_figures(bundle) for bundle in found]
        lock = read_lock(lock_path)
        _require_known(devices, {name for item in facts for name in item.devices})
        if lock is None and not update and not any(item.budget for item in facts):
            raise UsageError(
                f"nothing to hold this against: no budget in the recipe, and no {lock_path}",
                fix="write the lock from what there is: the same command with --update",
            )
        verdicts = [verdict for item in facts for verdict in judge(item, lock, devices)]
        if junit_path is not None:
            write_bytes(junit_path, junit(verdicts))
        if markdown_path is not None:
            write_bytes(markdown_path, markdown(verdicts).encode())
        if update:
            new = lock or empty_lock(lock_path)
            for item in facts:
                new = accepted(new, item)
            write_lock(new)
            # Only the lock can be accepted: budgets and wrong answers hold whatever it says.
            verdicts = [verdict for item in facts for verdict in judge(item, read_lock(lock_path), devices)]
    if console.json:
        console.answer_json(
            {"lock": str(lock_path), "verdicts": [dataclasses.asdict(item) for item in verdicts]}
        )
    else:
        _show(console, verdicts)
        if update:
            console.answer(f"{lock_path} holds these figures now: commit it")
    require_passed(verdicts, strict=strict)


def _require_known(devices: Sequence[str], known: set[str]) -> None:
    for name in devices:
        if name not in known:
            raise UsageError(
                f"no device called {name!r} measured these bundles",
                fix=f"use one of {', '.join(sorted(known))}"
                if known
                else "edge-export bench BUNDLE --on WHERE",
            )


def _show(console: Console, verdicts: Sequence[Verdict]) -> None:
    from exporter.checking.verdicts import State

    broken = sum(item.state is State.FAILED for item in verdicts)
    console.heading(f"{len(verdicts)} figures", f"{broken} broken" if broken else "none broken")
    columns = (
        Column("artifact"),
        Column("on"),
        Column("figure", fold=False),
        Column("before", right=True, fold=False),
        Column("now", right=True, fold=False),
        Column("limit", right=True, fold=False),
        Column("", fold=False),
    )
    for bundle in dict.fromkeys(item.bundle for item in verdicts):
        console.answer()
        console.answer(bundle)
        console.answer_table(columns, [_row(item) for item in verdicts if item.bundle == bundle])


def _row(item: Verdict) -> list[str]:
    numbers = ("" if value is None else f"{value:.4g}" for value in (item.before, item.now, item.limit))
    return [item.artifact, item.device or "", figures.figure_name(item.kind), *numbers, item.state.value]

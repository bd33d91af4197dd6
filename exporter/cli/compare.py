"""`edge-export compare`: what changed between two bundles or two builds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.terminal.console import Column, Console, pass_console, speaking
from exporter.cli.views import figures

if TYPE_CHECKING:
    from exporter.checking.comparison import Change


@click.command("compare", short_help="What changed between two bundles or builds.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Also what did not change.")
@speaking
@pass_console
def command(console: Console, old: Path, new: Path, show_all: bool) -> None:
    """Show what changed from OLD to NEW, two bundles or two builds: sizes, fidelity, metric, devices' figures.

    Times of two benches were measured at two times. `bench NEW --against OLD` measures both in turns.
    """
    from exporter.checking.comparison import compare_bundles

    changes = compare_bundles(old, new)
    if console.json:
        console.answer_json(
            {"changes": [{**dataclasses.asdict(item), "is_worse": item.is_worse} for item in changes]}
        )
        return
    shown = changes if show_all else [item for item in changes if item.before != item.after]
    worse = sum(item.is_worse is True for item in changes)
    console.heading(
        f"{len(shown)} of {len(changes)} figures differ", f"{worse} clearly worse" if worse else ""
    )
    if not shown:
        return
    columns = (
        Column("target", fold=False),
        Column("artifact"),
        Column("on"),
        Column("figure", fold=False),
        Column("old", right=True, fold=False),
        Column("new", right=True, fold=False),
        Column("change", right=True, fold=False),
        Column("", fold=False),
    )
    console.answer()
    console.answer_table(columns, [_row(item) for item in shown])


def _row(item: Change) -> list[str]:
    artifact, device, kind = item.key
    return [
        item.target,
        artifact,
        device or "",
        figures.figure_name(kind),
        *(figures.ABSENT if value is None else f"{value:.4g}" for value in (item.before, item.after)),
        _change(item),
        "worse" if item.is_worse else "",
    ]


def _change(item: Change) -> str:
    if item.before is None or item.after is None:
        return ""
    if item.key[2] in {"metric", "agreement"}:
        return f"{100.0 * (item.after - item.before):+.2f} pt"
    if item.key[2] == "sqnr_db":
        return f"{item.after - item.before:+.1f} dB"
    return "" if item.before == 0 else f"{100.0 * (item.after / item.before - 1.0):+.1f} %"

"""How the way to a budget is shown: one row a rung, what it gave, and what was spared at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporter.cli.terminal.console import Column, Console
from exporter.cli.views import figures

if TYPE_CHECKING:
    from exporter.bundle.report import RecoveryEntry, RungEntry

NAMED_LAYERS = 8


def show_recoveries(console: Console, recoveries: Sequence[RecoveryEntry]) -> None:
    """Answer with the ladder of every scheme in `recoveries`."""
    for recovery in recoveries:
        console.answer()
        console.answer_table(_columns(recovery), [_row(rung) for rung in recovery.rungs])
        for line in _conclusion(recovery):
            console.answer(line, style="dim")


def _columns(recovery: RecoveryEntry) -> list[Column]:
    return [
        Column(recovery.scheme, fold=False),
        Column(recovery.metric, right=True, fold=False),
        Column("lost\npoints", right=True, fold=False),
        Column("95 % interval", right=True, fold=False),
        Column("SQNR\ndB", right=True, fold=False),
        Column("budget", fold=False),
        Column("s", right=True, fold=False),
    ]


def _row(rung: RungEntry) -> list[str]:
    drop = rung.drop
    verdict = {True: "holds", False: "breaks", None: ""}[rung.holds]
    if rung.changed == 0 and drop is None:
        verdict = "nothing to do"
    elif rung.holds is False and not rung.kept:
        verdict = "breaks, undone"
    return [
        rung.name,
        "" if rung.value is None else f"{rung.value:.4f}",
        "" if drop is None else f"{drop.points:.2f}",
        "" if drop is None else f"{drop.low:.2f} to {drop.high:.2f}",
        figures.decibels(rung.sqnr_db) if rung.sqnr_db is not None else "",
        verdict,
        f"{rung.seconds:.1f}",
    ]


def _conclusion(recovery: RecoveryEntry) -> list[str]:
    budget = recovery.budget
    lines = []
    if budget is not None:
        against = (
            "the float model" if recovery.reference is None else f"a float score of {recovery.reference:.4f}"
        )
        lines.append(
            f"Budget: {budget:g} points of {recovery.metric} against {against}, {recovery.samples} samples."
        )
    for names, what in ((recovery.left_float, "in float"), (recovery.widened, "in int8")):
        if names:
            more = f" and {len(names) - NAMED_LAYERS} more" if len(names) > NAMED_LAYERS else ""
            lines.append(f"{len(names)} layers {what}: {', '.join(names[:NAMED_LAYERS])}{more}.")
    return lines

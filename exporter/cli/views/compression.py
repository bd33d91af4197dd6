"""How compression is shown: one row a step, each figure beside what it was, and then all steps together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.cli.terminal.console import Column, Console
from exporter.cli.views import figures

if TYPE_CHECKING:
    from exporter.artifacts import ModelFigures
    from exporter.bundle.report import CompressionEntry

_COLUMNS = (
    Column("compression", fold=False),
    Column("parameters", right=True, fold=False),
    Column("MACs", right=True, fold=False),
    Column("float\nfile", right=True, fold=False),
    Column("down-\nload", right=True, fold=False),
    Column("host\np50 ms", right=True, fold=False),
    Column("score", right=True, fold=False),
    Column("untrained", right=True, fold=False),
    Column("s", right=True, fold=False),
)


def show_compression(console: Console, compression: CompressionEntry) -> None:
    """Answer with the table of `compression`: what every step left of the model."""
    steps = compression.steps
    original = compression.original
    rows = [_row("original", original, None, None)]
    rows += [
        _row(f"{number} {step.method}", step.after, step.changed, step.seconds)
        for number, step in enumerate(steps, start=1)
    ]
    if steps:
        rows.append(_shares(original, steps[-1].after))
    console.answer()
    console.answer_table(_COLUMNS, rows)
    notes = [f"{number} {step.method}: {note}" for number, step in enumerate(steps, 1) for note in step.notes]
    console.answer_list("compression notes", notes)


def _row(name: str, now: ModelFigures, changed: ModelFigures | None, seconds: float | None) -> list[str]:
    return [
        name,
        figures.count(now.parameters),
        figures.count(now.macs),
        figures.byte_size(now.size_bytes),
        figures.byte_size(now.download_bytes),
        figures.milliseconds(now.p50_ms),
        _score(now),
        "" if changed is None else _score(changed),
        "" if seconds is None else f"{seconds:.0f}",
    ]


def _score(now: ModelFigures) -> str:
    return figures.ABSENT if now.score is None else f"{now.score:.4f}"


def _shares(original: ModelFigures, now: ModelFigures) -> list[str]:
    """Return the last row: what is left of every figure of the original."""

    def left(before: float | None, after: float | None) -> str:
        return f"{after / before:.0%}" if before and after is not None else figures.ABSENT

    change = ""
    if now.score is not None and original.score is not None:
        change = f"{100 * (now.score - original.score):+.2f}"
    lefts = (left(before, after) for before, after in zip(_costs(original), _costs(now), strict=True))
    return ["left of it", *lefts, change, "", ""]


def _costs(model: ModelFigures) -> tuple[float | None, ...]:
    """Return the figures of which less is better, in the order of their columns."""
    return model.parameters, model.macs, model.size_bytes, model.download_bytes, model.p50_ms

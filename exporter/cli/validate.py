"""`edge-export validate`: is this bundle what was built, and does it still compute the same?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from exporter.cli.terminal.console import Column, Console, pass_console, speaking
from exporter.cli.views import figures


@click.command("validate", short_help="Re-hash a bundle and replay its golden vectors.")
@click.argument("bundle", type=click.Path(path_type=Path))
@speaking
@pass_console
def command(console: Console, bundle: Path) -> None:
    """Re-hash every file of BUNDLE, prepare its golden pictures, and replay its golden vectors through each artifact's
    runtime.

    BUNDLE is a target's folder as build made it, for example edge-build/NAME/VERSION/android.
    """
    with console.work() as (progress, _):
        with progress.step("load the runtimes"):
            from exporter.jobs.replay import replay_bundle
        outcome = replay_bundle(bundle, progress=progress)
    if console.json:
        console.answer_json(outcome)
    else:
        _show(console, outcome)


def _show(console: Console, outcome: Mapping[str, Any]) -> None:
    count = outcome["files_hashed"]
    console.heading(
        f"{outcome['model']} for {outcome['target']}", f"{count} files are the bytes that were built"
    )
    if outcome["preprocessing"] is not None:
        console.answer(outcome["preprocessing"]["says"])
    console.answer()
    columns = (
        Column("artifact", fold=False),
        Column("replayed by"),
        Column("answers"),
        Column("largest\nerror", right=True, fold=False),
        Column("allowed", right=True, fold=False),
        Column("SQNR\ndB", right=True, fold=False),
    )
    console.answer_table(columns, [_row(artifact) for artifact in outcome["artifacts"]])
    console.answer_list(
        "notes",
        [f"{artifact['file']}: {artifact['note']}" for artifact in outcome["artifacts"] if artifact["note"]],
    )


def _row(artifact: Mapping[str, Any]) -> list[str]:
    was_replayed = artifact["passed"] is not None
    return [
        artifact["artifact"],
        artifact["runtime"] or figures.ABSENT,
        "as recorded" if was_replayed else "not run",
        figures.small(artifact.get("max_abs_error")),
        figures.small(artifact.get("tolerance")),
        figures.decibels(artifact.get("sqnr_db")),
    ]

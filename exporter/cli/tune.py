"""`edge-export tune`: a recipe with `[tune]` in, the best trade-offs and a ready recipe out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.terminal.text import typed_path
from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.search.trial import Evaluate
    from exporter.search.tuning import Question, TuneRequest

DEFAULT_OUT = Path("edge-tune")
DEFAULT_TRIALS = 30
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@click.command("tune", short_help="Search a recipe's [tune] space for the best trade-offs.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--trials",
    type=click.IntRange(min=0),
    default=DEFAULT_TRIALS,
    show_default=True,
    help="Trials in the study, by all processes together. 0: show what is there.",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Where the study lives: study.log, sqlite:///study.db, postgresql://… Default: a journal in OUT/STUDY/.",
)
@click.option("--study", metavar="NAME", help="Name of the study. Default: the model's name and version.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder that receives STUDY/.",
)
@click.option("--time", "limit", metavar="LIMIT", help="Begin no trial after this long, like 90m or 2h30m.")
@click.option(
    "--choose",
    metavar="WHICH",
    help="The point to write as a recipe: a trial's number, knee (default), or constraint: the best within the "
    "constraints (default for an architecture).",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be searched; run nothing.")
@speaking
@pass_console
def command(
    console: Console,
    *,
    recipe: Path,
    trials: int,
    storage: str | None,
    study: str | None,
    out: Path,
    limit: str | None,
    choose: str | None,
    only_plan: bool,
) -> None:
    """Try variants of RECIPE as its [tune] table says, and keep those that nothing beats in everything.

    Start it on as many machines as you like with one --storage: they work on one study, and each goes on where
    the study is. The chosen point becomes a recipe beside RECIPE, ready to build.
    """
    from exporter.search.tuning import TuneRequest, read_question

    _require_choice(choose)
    seconds = None if limit is None else _seconds(limit)
    question = read_question(recipe)
    name = study or f"{question.recipe.model.name}-{question.recipe.model.version}"
    if not _STUDY_NAME.fullmatch(name):
        raise UsageError(
            f"--study {name} is no name", fix="use letters, digits, '.', '_' and '-', at most 100"
        )
    request = TuneRequest(name, storage, out / name, trials, seconds, choose)
    if only_plan:
        from exporter.cli.views.tune import show_question

        show_question(console, question, request, f"edge-export tune {typed_path(recipe)} --trials {trials}")
        return
    _search(console, question, request)


def _require_choice(choose: str | None) -> None:
    if choose is not None and choose not in {"knee", "constraint"} and not choose.isdecimal():
        raise UsageError(f"--choose {choose} is no choice", fix="write knee, constraint, or a trial's number")


def _seconds(limit: str) -> float:
    """Return a duration like `45s`, `90m` or `2h30m` in seconds; a bare number is seconds."""
    found = _DURATION.fullmatch(limit)
    if found is None or not any(found.groups()):
        raise UsageError(f"--time {limit} is no duration", fix="write it like 45s, 90m or 2h30m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def _search(console: Console, question: Question, request: TuneRequest) -> None:
    from exporter.cli.views.tune import show_tuned

    with console.work() as (progress, log):
        with progress.step("load the search"):
            from exporter.search.tuning import tune

        def make_evaluate(scratch: Path) -> tuple[Evaluate, str | None]:
            with progress.step("load the frameworks"):
                from exporter.search.evaluation import PipelineEvaluation
            evaluation = PipelineEvaluation(
                question.recipe, question.table, scratch=scratch, progress=progress, log=log
            )
            return evaluation, evaluation.metric_name

        tuned = tune(question, request, make_evaluate, progress)
    show_tuned(console, tuned)
    if console.verbose:
        console.tell(f"log: {log}")

"""`edge-export build`: a recipe in, validated bundles and a report out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.terminal.text import inert, typed_path
from exporter.system.files import require_folder
from exporter.system.processes import is_main_process

if TYPE_CHECKING:
    from exporter.artifacts import Format
    from exporter.recipe.planning import Plan
    from exporter.recipe.recipe import Recipe
    from targets.base import Target

DEFAULT_OUT = Path("edge-build")


@click.command("build", short_help="Build, measure and publish what a recipe describes.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "names",
    multiple=True,
    metavar="NAME",
    help="Build for this target only; repeat for more. Default: every target of the recipe.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder that receives NAME/VERSION/.",
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Say what would be made and what is refused; make nothing."
)
@click.option(
    "--trust-code",
    is_flag=True,
    help="Load a .pt2 or whole-module .pt, which can run code. Only for your own files.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the compression that an interrupted build of this recipe left in OUT.",
)
@speaking
@pass_console
def command(
    console: Console,
    *,
    recipe: Path,
    names: tuple[str, ...],
    out: Path,
    only_plan: bool,
    trust_code: bool,
    resume: bool,
) -> None:
    """Build every artifact that RECIPE's targets want, measure each, and publish all of them or none.

    The result appears whole in OUT/NAME/VERSION/: one bundle per target, and report.json.
    """
    again = " ".join(
        ["edge-export build", typed_path(recipe), *(f"--target {inert(name)}" for name in names)]
    )
    request = BuildRequest(recipe, out, names, only_plan, trust_code, again, resume=resume)
    build_recipe(console, request)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build and where; for people to paste, `again` is the command that builds it and
    `next_commands` what else to type after it. `formats` and `only_installed` are those of `make_plan`.
    """

    recipe: Path
    out: Path
    names: tuple[str, ...] = ()
    only_plan: bool = False
    trust_code: bool = False
    again: str = ""
    next_commands: tuple[str, ...] = ()
    resume: bool = False
    formats: frozenset[Format] | None = None
    only_installed: bool = False


def build_recipe(console: Console, request: BuildRequest) -> None:
    """Plan and, unless that is all that was asked for, build; answer with the result."""
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import read_recipe

    recipe = read_recipe(request.recipe)
    plan = make_plan(
        recipe,
        choose_targets(recipe, request.names),
        trust_code=request.trust_code,
        formats=request.formats,
        only_installed=request.only_installed,
    )
    if request.only_plan:
        from exporter.cli.views.plan import show_plan

        show_plan(console, plan, request.again)
        return
    require_folder(request.out, what="--out")
    _run(console, plan, request)


def choose_targets(recipe: Recipe, names: Sequence[str]) -> dict[str, Target]:
    """Return the targets to build for: those named, or else all tables of the recipe, in that order."""
    from targets.discovery import get_target

    return {name: get_target(name) for name in (names or recipe.targets)}


def _run(console: Console, plan: Plan, request: BuildRequest) -> None:
    from exporter.cli.views.report import show_report

    if not is_main_process():
        _train_along(plan, request)
        return
    with console.work() as (progress, log):
        # Inside the work: importing the frameworks is the first thing that takes seconds.
        with progress.step("load the frameworks"):
            from exporter.jobs.build import build
        result = build(plan, out=request.out, progress=progress, log=log, resume=request.resume)
    show_report(console, result.path, result.report, request.next_commands)
    if console.verbose:
        console.tell(f"log: {log}")


def _train_along(plan: Plan, request: BuildRequest) -> None:
    """Be one of several processes that train: silent, and writing nothing of the build."""
    from exporter.jobs.build import take_part
    from exporter.progress import Silence

    take_part(plan, out=request.out, progress=Silence(), log=Path(os.devnull), resume=request.resume)

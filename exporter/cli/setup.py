"""`edge-export setup`: give a converter an environment of its own."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.system.converters.catalogue import CONVERTERS


@click.command("setup", short_help="Give the LiteRT or Core ML converter an environment of its own.")
@click.argument("converter", type=click.Choice(list(CONVERTERS)))
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The Python that makes it, where this one's version has no wheels. Default: the one that runs this.",
)
@click.option("--again", is_flag=True, help="Make it anew, even if it fits.")
@click.option(
    "--remove", "only_remove", is_flag=True, help="Remove it; the converter is then looked for here."
)
@speaking
@pass_console
def command(console: Console, *, converter: str, python: Path | None, again: bool, only_remove: bool) -> None:
    """Install CONVERTER's libraries, in tested versions, into an environment of their own, and convert there from now on.

    LiteRT's converter needs old versions of libraries that the rest is better without. The environment lies inside this
    one and shares its torch; needs an index of packages, as pip does.
    """
    from exporter.system.converters.environment import home_of
    from exporter.system.converters.making import remove, set_up

    wanted = CONVERTERS[converter]
    if only_remove:
        removed = remove(wanted)
        console.answer_json({"removed": removed}) if console.json else console.answer_line(
            f"removed {home_of(wanted)}" if removed else f"{converter} has no environment of its own"
        )
        return
    with console.work() as (progress, _), progress.step(f"setting up {converter}"):
        made = set_up(wanted, progress.say, python=python, again=again)
    facts = {"converter": converter, "home": str(made.home), "versions": dict(made.versions)}
    if console.json:
        console.answer_json(facts)
        return
    console.answer_line(f"{converter} converts in {made.home}")

"""`edge-export demo`: the whole job on a built-in model, offline."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import click

from exporter.artifacts import Format
from exporter.cli.build import DEFAULT_OUT, BuildRequest, build_recipe
from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.terminal.text import inert, typed_path


@click.command("demo", short_help="Do the whole job on a built-in model, offline.")
@click.option(
    "--model",
    type=click.Choice(["cnn", "vit", "cnn-small"]),
    default="cnn",
    show_default=True,
    help="A convolutional network or a vision transformer, both trained on handwritten digits; "
    "cnn-small first prunes the former, distils it and trains it for int8 (minutes).",
)
@click.option(
    "--target",
    "names",
    multiple=True,
    metavar="NAME",
    help="Build for this target only; repeat for more. Default: android, ios and raspberry-pi.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice([kind.value for kind in Format]),
    help="Make only files of this format; repeat for more. Default: every format whose extra is installed.",
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
@speaking
@pass_console
def command(
    console: Console,
    *,
    model: str,
    names: tuple[str, ...],
    formats: tuple[str, ...],
    out: Path,
    only_plan: bool,
) -> None:
    """Do the whole job on a small trained model that ships with the tool; needs no network.

    What cannot be made here because an extra is not installed is listed with the command that installs it. The end of
    the run says how to copy its recipe, model and data, to start from.
    """
    recipe = demo_recipe(model)
    chosen = [*(f"--target {inert(name)}" for name in names), *(f"--format {kind}" for kind in formats)]
    again = " ".join([f"edge-export demo --model {model}", *chosen])
    copy = f"cp -r {typed_path(recipe.parent)} my-model && edge-export build my-model/{recipe.name}"
    request = BuildRequest(
        recipe,
        out,
        names,
        only_plan,
        again=again,
        next_commands=(copy,),
        formats=frozenset(map(Format, formats)) or None,
        only_installed=not formats,
    )
    build_recipe(console, request)


def demo_recipe(model: str) -> Path:
    """Return the path of the built-in recipe of `model` (`cnn`, `vit` or `cnn-small`)."""
    return Path(str(importlib.resources.files("exporter"))) / "demo" / f"digits-{model}.toml"

"""`edge-export init`: a first recipe, from what the model says of itself."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.terminal.text import typed_path
from exporter.errors import UsageError


@click.command("init", short_help="Write a commented recipe for a model.")
@click.argument("model")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("recipe.toml"),
    show_default=True,
    help="The recipe to write; paths in it are relative to its folder.",
)
@click.option("--force", is_flag=True, help="Overwrite the recipe if it is there.")
@speaking
@pass_console
def command(console: Console, *, model: str, output: Path, force: bool) -> None:
    """Write a commented recipe for MODEL, an .onnx file or "file.py:callable" that returns a torch module.

    An .onnx file states its inputs. A callable is run once, in a process of its own, and its module's
    forward gives the names of the inputs; dtypes and shapes are then placeholders, marked FILL IN.
    """
    if output.exists() and not force:
        raise UsageError(f"{output} is there already", fix="choose another name with -o, or pass --force")
    if not output.parent.is_dir():
        raise UsageError(
            f"the folder {output.parent} does not exist", fix=f"run: mkdir -p {typed_path(output.parent)}"
        )
    from exporter.jobs.init import draft_recipe
    from exporter.system.files import write_bytes
    from targets.discovery import all_targets

    with console.work() as (progress, log), progress.step(f"read {model}"):
        draft = draft_recipe(model, output.parent, list(all_targets()), log=log)
    write_bytes(output, draft.text.encode())
    if console.json:
        console.answer_json({"recipe": str(output), "open_points": list(draft.open_points)})
        return
    console.answer(f"Wrote {output}.")
    console.answer_list("left for you to say", draft.open_points)
    console.answer_commands("next", [f"edge-export build {typed_path(output)} --plan"])

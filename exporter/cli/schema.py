"""`edge-export schema`: the JSON Schema of a recipe."""

from __future__ import annotations

import click

from exporter.cli.terminal.console import Console, pass_console, speaking


@click.command("schema", short_help="Print the JSON Schema of a recipe.")
@speaking
@pass_console
def command(console: Console) -> None:
    """Print the JSON Schema of a recipe, for editors.

    It is JSON with or without --json. In VS Code with the Even Better TOML extension, save it and put
    "#:schema recipe.schema.json" on the first line of a recipe.
    """
    from exporter.recipe.recipe import json_schema

    console.answer_json(json_schema())

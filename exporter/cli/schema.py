"""`edge-export schema`: the JSON Schema of a recipe, or of a report."""

from __future__ import annotations

import click

from exporter.cli.terminal.console import Console, pass_console, speaking


@click.command("schema", short_help="Print the JSON Schema of a recipe or a report.")
@click.argument(
    "document", type=click.Choice(["recipe", "report"]), default="recipe", metavar="[recipe|report]"
)
@speaking
@pass_console
def command(console: Console, document: str) -> None:
    """Print the JSON Schema of a recipe, for editors, or of report.json, for who reads it.

    It is JSON with or without --json. In VS Code with the Even Better TOML extension, save it and put
    "#:schema recipe.schema.json" on the first line of a recipe.
    """
    if document == "report":
        from exporter.bundle.report import json_schema
    else:
        from exporter.recipe.recipe import json_schema
    console.answer_json(json_schema())

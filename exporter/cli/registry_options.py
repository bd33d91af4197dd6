"""The options that all commands on registries share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

KEYS_VARIABLE = "EDGE_EXPORT_KEYS"
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def believing(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--key` and `--timeout`."""
    options = (
        click.option(
            "--key",
            "keys",
            type=_FILE,
            multiple=True,
            envvar=KEYS_VARIABLE,
            metavar="PUBLIC.pem",
            help=f"Take only what one of these keys signed; repeatable, for rotation. Also: ${KEYS_VARIABLE}.",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=1, max=3600),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="For one request.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def show_lines(lines: tuple[str, ...], url: str) -> list[str]:
    """Return dependency lines with the registry's URL in its place, as an ecosystem's client takes it."""
    from pathlib import Path as LocalPath

    shown = url if "://" in url else LocalPath(url).absolute().as_uri()
    return [line.replace("{registry}", shown) for line in lines]

"""The options that all commands on registries share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from exporter.errors import UsageError
from exporter.system.urls import without_credentials

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
            callback=_keys_or_those_of_the_variable,
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


def _keys_or_those_of_the_variable(
    context: click.Context, parameter: click.Parameter, given: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Return `given`, or else what the variable names: set and empty it demands keys and has none, which is a mistake."""
    del context, parameter
    named = os.environ.get(KEYS_VARIABLE)
    if given or named is None:
        return given
    keys = tuple(Path(part) for part in named.split(os.pathsep) if part)
    if not keys:
        raise UsageError(
            f"{KEYS_VARIABLE} is set and names no key: nothing would be checked",
            fix=f"unset {KEYS_VARIABLE}, or name the public keys in it",
        )
    for key in keys:
        if not key.is_file():
            raise UsageError(f"{KEYS_VARIABLE} names {key}, which is no file", fix="correct the path in it")
    return keys


def show_lines(lines: tuple[str, ...], url: str) -> list[str]:
    """Return dependency lines with the registry's URL in its place, as an ecosystem's client takes it."""
    from pathlib import Path as LocalPath

    shown = without_credentials(url) if "://" in url else LocalPath(url).absolute().as_uri()
    return [line.replace("{registry}", shown) for line in lines]

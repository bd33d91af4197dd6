"""`edge-export list`: what a registry has, and what to paste to get it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from exporter.cli.registry_options import believing, show_lines
from exporter.cli.terminal.console import Column, Console, named_once, pass_console, speaking
from exporter.cli.views import figures
from exporter.errors import InputError

if TYPE_CHECKING:
    from exporter.registry.documents import ReleaseEntry

    Releases = Mapping[str, Mapping[str, Mapping[str, ReleaseEntry]]]


@click.command("list", short_help="What a registry has, and what to paste to get it.")
@click.argument("url", metavar="REGISTRY")
@click.argument("wanted", metavar="[NAME[@RANGE]]", default="")
@believing
@speaking
@pass_console
def command(
    console: Console, /, *, url: str, wanted: str, keys: tuple[object, ...], timeout_s: float
) -> None:
    """List the models, versions and targets of REGISTRY, newest first; of NAME also the lines that teams paste."""
    from pathlib import Path

    with console.work() as (progress, _):
        with progress.step("loading"):
            from exporter.registry.reading import open_registry
            from exporter.registry.stores.opening import open_store
            from exporter.registry.versions import newest_first
        registry = open_registry(open_store(url, timeout_s=timeout_s), [Path(str(key)) for key in keys])
    index = registry.index
    releases, best = _asked_for(index.releases, wanted, registry.store.url)
    rows = [
        [name, version, target, figures.byte_size(entry.bundle_bytes), "yes" if entry.signatures else "no"]
        for name in sorted(releases)
        for version in newest_first(releases[name])
        for target, entry in sorted(releases[name][version].items())
    ]
    lines = [
        line
        for name in releases
        if best is not None
        for entry in releases[name][best].values()
        for line in show_lines(entry.lines, url)
    ]
    if console.json:
        keys_of = ("name", "version", "target")
        console.answer_json(
            {
                "registry": registry.store.url,
                "serial": index.serial,
                "issued": index.issued.isoformat(),
                "expires": index.expires.isoformat(),
                "signed_by": index.signed_by,
                "releases": [
                    {
                        **dict(zip(keys_of, row, strict=False)),
                        "bundle_bytes": releases[row[0]][row[1]][row[2]].bundle_bytes,
                        "signed_by": [item.key for item in releases[row[0]][row[1]][row[2]].signatures],
                        "lines": show_lines(releases[row[0]][row[1]][row[2]].lines, url),
                    }
                    for row in rows
                ],
            }
        )
        return
    console.heading(
        registry.store.url,
        f"index {index.serial} of {index.issued:%Y-%m-%d}, valid until {index.expires:%Y-%m-%d}, "
        + (f"signed by {index.signed_by[:16]}…" if index.signed_by else "not signed"),
    )
    console.answer()
    columns = (
        Column("model", fold=False),
        Column("version", fold=False),
        Column("target", fold=False),
        Column("bundle", right=True, fold=False),
        Column("signed", fold=False),
    )
    console.answer_table(columns, named_once(rows))
    if lines:
        console.answer_commands(f"what teams paste for {best}", lines)
    else:
        console.answer_commands("next", [f"edge-export list {registry.store.url} NAME"])


def _asked_for(releases: Releases, wanted: str, url: str) -> tuple[Releases, str | None]:
    """Return the releases that `NAME[@RANGE]` means and the newest version of them; all and `None` for an empty wish."""
    from exporter.registry.versions import choose, newest_first, parse_requirement

    if not wanted:
        return releases, None
    name, versions = parse_requirement(wanted)
    if name not in releases:
        raise InputError(
            f"{url} has no model called {name!r}", fix=f"it has {', '.join(sorted(releases)) or 'none'}"
        )
    meant = {text: targets for text, targets in releases[name].items() if choose([text], versions)}
    if not meant:
        raise InputError(
            f"{url} has no version of {name} that {versions.text!r} admits",
            fix=f"there is {', '.join(newest_first(releases[name])[:8])}",
        )
    return {name: meant}, choose(meant, versions)

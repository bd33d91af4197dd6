"""`edge-export list`: what a registry has, and what to paste to get it."""

from __future__ import annotations

import click

from exporter.cli import figures
from exporter.cli.console import Column, Console, named_once, pass_console, speaking
from exporter.cli.registry_options import believing, show_lines


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
            from exporter.errors import InputError
            from exporter.registry.reading import open_registry
            from exporter.registry.store import open_store
            from exporter.registry.versions import choose, newest_first, parse_requirement
        registry = open_registry(open_store(url, timeout_s=timeout_s), [Path(str(key)) for key in keys])
    index = registry.index
    releases = index.releases
    best: str | None = None
    if wanted:
        name, versions = parse_requirement(wanted)
        if name not in releases:
            raise InputError(
                f"{registry.store.url} has no model called {name!r}",
                fix=f"it has {', '.join(sorted(releases))}",
            )
        releases = {name: {v: t for v, t in releases[name].items() if choose([v], versions) == v}}
        best = choose(releases[name], versions)
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
        console.answer_commands("next", [f"edge-export list {url} NAME"])

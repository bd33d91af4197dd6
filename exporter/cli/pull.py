"""`edge-export pull`: a published bundle into a folder, every byte checked."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.registry_options import believing
from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.terminal.text import typed_path
from exporter.cli.views import figures

DEFAULT_OUT = Path("edge-pull")


@click.command("pull", short_help="Fetch a published bundle, checked byte by byte.")
@click.argument("wanted", metavar="NAME[@VERSION|RANGE]")
@click.option(
    "--from",
    "url",
    required=True,
    metavar="REGISTRY",
    help="A folder or URL that publish wrote, or that serves it.",
)
@click.option(
    "--target", metavar="T", help="For whom: android, ios, raspberry-pi. Needed where there are several."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder that receives NAME/VERSION/TARGET/.",
)
@believing
@speaking
@pass_console
def command(
    console: Console,
    /,
    *,
    wanted: str,
    url: str,
    target: str | None,
    out: Path,
    keys: tuple[Path, ...],
    timeout_s: float,
) -> None:
    """Fetch the newest published version of NAME that VERSION or RANGE admits (1.2.0, 1.x, ^1.2, ~1.2.3, '>=1.0,<2').

    What is in the cache is not fetched again, and a pull that broke off goes on where it stopped. Every byte is held
    against the digest it was published with; an index older than one seen before, or past its time, is refused.
    """
    with console.work() as (progress, _):
        with progress.step("loading"):
            from exporter.registry.pulling import choose_release, pull
            from exporter.registry.reading import open_registry
            from exporter.registry.stores.opening import open_store
            from exporter.registry.versions import parse_requirement
        name, versions = parse_requirement(wanted)
        registry = open_registry(open_store(url, timeout_s=timeout_s), keys)
        pulled = pull(registry, choose_release(registry, name, versions, target), out, progress=progress)
    release = pulled.release
    if console.json:
        console.answer_json(
            {
                "path": str(pulled.path),
                "name": release.name,
                "version": release.version,
                "target": release.target,
                "files": pulled.files,
                "size_bytes": pulled.size_bytes,
                "fetched_bytes": pulled.fetched_bytes,
                "serial": registry.index.serial,
                "signed_by": list(pulled.signed_by),
            }
        )
        return
    console.heading(
        f"{release.name} {release.version} for {release.target}",
        f"{pulled.files} files, {figures.byte_size(pulled.size_bytes)}; "
        f"{figures.byte_size(pulled.fetched_bytes)} came over the line",
    )
    console.answer(
        f"signed by {', '.join(pulled.signed_by)}"
        if pulled.signed_by
        else "digests checked; no key was asked for"
    )
    console.answer_commands(
        "next",
        [f"edge-export validate {typed_path(pulled.path)}", f"edge-export verify {typed_path(pulled.path)}"],
    )

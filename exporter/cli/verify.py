"""`edge-export verify`: is what lies there what was published?"""

from __future__ import annotations

import time
from pathlib import Path

import click

from exporter.cli.registry_options import believing
from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.views import figures


@click.command("verify", short_help="Re-hash a registry, a pulled bundle or a build; check signatures.")
@click.argument("where", metavar="PATH|REGISTRY")
@believing
@speaking
@pass_console
def command(console: Console, /, *, where: str, keys: tuple[Path, ...], timeout_s: float) -> None:
    """Hash every file of a registry, a pulled bundle or a build against what was recorded when it was made.

    The first file that is missing, added, changed or replaced by a link is named with both digests; exit code 19. Runs
    no model: `edge-export validate` replays a bundle's golden vectors.
    """
    with console.work() as (progress, _):
        with progress.step("loading"):
            from exporter.bundle.manifest import MANIFEST_NAME
            from exporter.registry.checking import check_bundle, check_registry
            from exporter.registry.stores.opening import open_store
        started = time.monotonic()
        if "://" not in where and (Path(where) / MANIFEST_NAME).is_file():
            found = check_bundle(Path(where), keys, progress=progress)
        else:
            found = check_registry(open_store(where, timeout_s=timeout_s), keys, progress=progress)
        seconds = time.monotonic() - started
    if console.json:
        console.answer_json(
            {
                "subject": found.subject,
                "kind": found.kind,
                "files": found.files,
                "size_bytes": found.size_bytes,
                "signed_by": list(found.signed_by),
                "seconds": seconds,
                "notes": list(found.notes),
            }
        )
        return
    console.heading(
        f"{found.kind} {found.subject}",
        f"{found.files} files, {figures.byte_size(found.size_bytes)}, are the bytes that were recorded",
    )
    if keys:
        console.answer(f"signed by {', '.join(found.signed_by)}, with a key you trust")
    elif found.signed_by:
        console.answer(
            f"signed by {', '.join(found.signed_by)}: whether that is whom you trust, --key KEY.pem tells"
        )
    else:
        console.answer("not signed: the digests find damage, not forgery")
    console.answer_list("notes", list(found.notes))

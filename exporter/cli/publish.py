"""`edge-export publish`: put bundles where mobile teams pull them from."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.registry_options import show_lines
from exporter.cli.terminal.console import Console, pass_console, speaking
from exporter.cli.views import figures
from exporter.errors import UsageError
from exporter.system.urls import without_credentials

_SHOWN = 8


@click.command("publish", short_help="Put bundles into a registry that Gradle, SwiftPM and pip pull from.")
@click.argument("paths", nargs=-1, required=True, metavar="BUNDLE... REGISTRY")
@click.option(
    "--sign",
    "sign_with",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PRIVATE.pem",
    help="Sign with this ECDSA key (OpenSSF Model Signing). A signed registry stays signed.",
)
@click.option(
    "--valid-days",
    type=click.IntRange(min=1, max=3650),
    default=365,
    show_default=True,
    metavar="DAYS",
    help="After them clients refuse the index until it is renewed.",
)
@click.option(
    "--renew", is_flag=True, help="No bundle: renew the index, and sign what the key has not signed."
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Check and pack; say what would be published, write nothing."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1, max=3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For one request.",
)
@speaking
@pass_console
def command(
    console: Console,
    /,
    *,
    paths: tuple[str, ...],
    sign_with: Path | None,
    valid_days: int,
    renew: bool,
    only_plan: bool,
    timeout_s: float,
) -> None:
    """Publish BUNDLEs, or whole builds, to REGISTRY: a folder, s3://BUCKET/PATH, gs://, or another URL of fsspec's.

    One layout serves everybody: a Maven repository (REGISTRY/maven), git repositories for Swift packages
    (REGISTRY/swift/NAME.git), a pip index (REGISTRY/simple), and bundles for `edge-export pull`. What is published never
    changes; the same bundle again is no change. Nothing is seen until all of it is there.
    """
    *given, url = paths
    if renew and given:
        raise UsageError(
            "--renew takes the registry alone", fix=f"edge-export publish --renew {without_credentials(url)}"
        )
    if not given and not renew:
        raise UsageError(
            "no bundle is named", fix=f"edge-export publish BUNDLE... {without_credentials(url)}"
        )
    with console.work() as (progress, _):
        with progress.step("loading"):
            from exporter.checking.figures import bundles_in
            from exporter.registry.packing import require_whole
            from exporter.registry.publishing import publish
            from exporter.registry.stores.opening import open_store
        folders = [Path(path) for path in given]
        bundles = bundles_in(folders) if given else []
        for folder in folders:
            require_whole(folder)
        outcome = publish(
            bundles,
            open_store(url, timeout_s=timeout_s),
            sign_with=sign_with,
            valid_days=valid_days,
            only_plan=only_plan,
            progress=progress,
        )
    index = outcome.index
    lines = list(dict.fromkeys(outcome.lines))
    if console.json:
        console.answer_json(
            {
                "registry": without_credentials(url),
                "serial": index.serial if index else None,
                "expires": index.expires.isoformat() if index else None,
                "signed_by": index.signed_by if index else None,
                "published": list(outcome.added),
                "present": list(outcome.present),
                "mended": list(outcome.mended),
                "uploaded_bytes": outcome.uploaded_bytes,
                "lines": show_lines(tuple(lines), url),
                "notes": list(outcome.notes),
                "planned": only_plan,
            }
        )
        return
    verb = "would be published" if only_plan else "published"
    remark = (
        f"{figures.byte_size(outcome.uploaded_bytes)} written" if not only_plan else "nothing was written"
    )
    if index is not None and not only_plan:
        remark += f", index {index.serial} until {index.expires:%Y-%m-%d}"
    console.heading(f"{len(outcome.added)} {verb}" if given else "index renewed", remark)
    console.answer_list("new", list(outcome.added))
    console.answer_list("already there, the same bytes", list(outcome.present))
    mended = list(outcome.mended)
    shown = [*mended[:_SHOWN], *([f"and {len(mended) - _SHOWN} more"] if len(mended) > _SHOWN else [])]
    console.answer_list("was damaged or missing, and is written again", shown)
    console.answer_list("notes", list(outcome.notes))
    if lines:
        console.answer_commands("what teams paste", show_lines(tuple(lines), url))

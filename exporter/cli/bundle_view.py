"""How a folder that a build made is shown: a whole build, or one target's bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.cli import figures
from exporter.cli.console import Column, Console
from exporter.cli.report_view import show_report
from exporter.cli.text import typed_path
from exporter.errors import InputError, IntegrityError
from exporter.manifest import MANIFEST_NAME, read_manifest

REPORT_NAME = "report.json"


def show_folder(console: Console, folder: Path) -> None:
    """Answer with what `folder` holds.

    Raises `InputError` if no build made it, `IntegrityError` if it is damaged.
    """
    if (folder / REPORT_NAME).is_file():
        _show_build(console, folder)
    elif (folder / MANIFEST_NAME).is_file():
        _show_bundle(console, folder)
    else:
        raise InputError(
            f"{folder} holds neither {MANIFEST_NAME} nor {REPORT_NAME}, so it is no bundle and no build",
            fix="name a folder below edge-build/NAME/VERSION, a recipe or an .onnx file",
        )


def _show_build(console: Console, folder: Path) -> None:
    path = folder / REPORT_NAME
    try:
        show_report(console, folder, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged", fix="build it again, or copy it again") from error


def _show_bundle(console: Console, folder: Path) -> None:
    manifest = read_manifest(folder)
    if console.json:
        console.answer_json({"path": str(folder), "manifest": manifest})
        return
    files = manifest["files"]
    console.heading(
        f"{manifest.get('name')} {manifest.get('version')} for {manifest.get('target')}",
        f"{len(files)} files, {figures.byte_size(sum(entry['size'] for entry in files.values()))}",
    )
    console.answer()
    console.answer_table(
        (Column("artifact", fold=False), Column("file"), Column("size", right=True, fold=False)),
        [
            [entry["artifact"], f"models/{entry['file']}", figures.byte_size(_size(files, entry["file"]))]
            for entry in manifest.get("artifacts", [])
        ],
    )
    console.answer_commands("next", [f"edge-export validate {typed_path(folder)}"])


def _size(files: Mapping[str, Mapping[str, Any]], name: str) -> int:
    """Return the bytes of one model, which is a file or, as an `.mlpackage`, a folder of files."""
    path = f"models/{name}"
    return sum(entry["size"] for file, entry in files.items() if file == path or file.startswith(f"{path}/"))

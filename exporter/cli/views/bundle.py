"""How a folder that a build made is shown: a whole build, or one target's bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.bundle.contract import DOCUMENT_NAME, contract_document, read_contract
from exporter.bundle.manifest import MANIFEST_NAME, listed_bytes, read_manifest
from exporter.bundle.measured import read_measured
from exporter.bundle.report import REPORT_NAME, read_report
from exporter.cli.terminal.console import Column, Console
from exporter.cli.terminal.text import typed_path
from exporter.cli.views import figures
from exporter.cli.views.contract import contract_pairs
from exporter.cli.views.report import show_report
from exporter.errors import InputError, IntegrityError


def show_folder(console: Console, folder: Path) -> None:
    """Answer with what `folder` holds.

    Raises `InputError` if no build made it, `IntegrityError` if it is damaged.
    """
    if (folder / REPORT_NAME).is_file():
        show_report(console, folder, read_report(folder / REPORT_NAME))
    elif (folder / MANIFEST_NAME).is_file():
        _show_bundle(console, folder)
    else:
        raise InputError(
            f"{folder} holds neither {MANIFEST_NAME} nor {REPORT_NAME}, so it is no bundle and no build",
            fix="name a folder below edge-build/NAME/VERSION, a recipe or an .onnx file",
        )


def _show_bundle(console: Console, folder: Path) -> None:
    manifest = read_manifest(folder)
    measured = read_measured(folder)
    carried = read_contract(folder) if (folder / DOCUMENT_NAME).is_file() else None
    document = None if carried is None else contract_document(carried.contract, carried.labels)
    if console.json:
        console.answer_json(
            {"path": str(folder), "manifest": manifest, "preprocess": document, "measured": measured}
        )
        return
    files = manifest["files"]
    console.heading(
        f"{manifest.get('name')} {manifest.get('version')} for {manifest.get('target')}",
        f"{len(files)} files, {figures.byte_size(sum(entry['size'] for entry in files.values()))}",
    )
    if document is not None:
        console.answer_pairs(contract_pairs(None, document))
    console.answer()
    console.answer_table(
        (Column("artifact", fold=False), Column("file"), Column("size", right=True, fold=False)),
        [
            [
                entry["artifact"],
                f"models/{entry['file']}",
                figures.byte_size(listed_bytes(manifest, f"models/{entry['file']}")),
            ]
            for entry in manifest.get("artifacts", [])
        ],
    )
    if measured:
        try:
            rows = [_measured_row(name, record) for name, record in measured.items()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                f"{folder}/measured holds no records of measurements", fix="measure the bundle again"
            ) from error
        _show_measured(console, [row for row in rows if row])
    console.answer_commands("next", [f"edge-export validate {typed_path(folder)}"])


def _show_measured(console: Console, rows: Sequence[Sequence[str]]) -> None:
    columns = (
        *(Column(title, fold=False) for title in ("measured on", "best file there", "runtime")),
        *(Column(title, right=True, fold=False) for title in ("p50\nms", "p90\nms", "million\ninstructions")),
        Column("when", fold=False),
    )
    console.answer()
    console.answer_table(columns, rows)


def _measured_row(name: str, record: Mapping[str, Any]) -> list[str]:
    """Return what a device found fastest, or executing the fewest instructions; nothing if it has no figures."""
    items = [item for item in record["measurements"] if _cost(item) is not None]
    best = min(items, key=lambda item: _cost(item) or 0.0, default=None)
    if best is None:
        return []
    return [
        *(name, str(best["artifact"]), str(best["runtime"])),
        *(figures.milliseconds(best[key]) for key in ("p50_ms", "p90_ms")),
        figures.ABSENT if best["instructions_m"] is None else f"{best['instructions_m']:.2f}",
        str(record["at"]).partition("T")[0],
    ]


def _cost(item: Mapping[str, Any]) -> float | None:
    figure: float | None = item["p50_ms"] if item["p50_ms"] is not None else item["instructions_m"]
    return figure

"""What a search leaves behind: `study.json`, the front as a picture, and the chosen point as a recipe."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import __version__
from exporter.artifacts import to_plain
from exporter.errors import InternalError
from exporter.recipe.recipe import read_recipe
from exporter.search.picture import draw_front
from exporter.search.points import Findings
from exporter.search.rewrite import moved_references, rewritten
from exporter.search.space import Space, set_at
from exporter.system.files import disk_errors, write_bytes, write_json

STUDY_SCHEMA = 1


def document(findings: Findings) -> dict[str, Any]:
    """Return the content of `study.json`: plain data, every trial included."""
    return {
        "schema": STUDY_SCHEMA,
        "tool": {"name": "edge-exporter", "version": __version__},
        "study": findings.study,
        "storage": findings.storage,
        "model": findings.model,
        "objectives": [
            {"name": goal.name, "direction": "maximize" if goal.maximize else "minimize", "label": goal.label}
            for goal in findings.goals
        ],
        "constraints": findings.limits.model_dump(exclude_none=True),
        "original": to_plain(findings.original),
        "trials": [{**to_plain(point), "on_front": point in findings.front} for point in findings.points],
        "front": [point.number for point in findings.front],
        "chosen": {
            "trial": findings.chosen.number,
            "why": findings.why,
            "values": to_plain(findings.chosen.values),
        },
    }


def write_study(findings: Findings, folder: Path) -> tuple[Path, ...]:
    """Write `study.json`, `front.png` and `front.svg` into `folder` and return their paths."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", document(findings))
    paths = [folder / "study.json"]
    for kind, content in draw_front(findings).items():
        write_bytes(folder / f"front.{kind}", content)
        paths.append(folder / f"front.{kind}")
    return tuple(paths)


@dataclass(frozen=True, slots=True)
class TunedRecipe:
    """Where the chosen point's recipe is, and whether the original's comments are still in it."""

    path: Path
    kept_text: bool


def write_tuned(recipe: Path, space: Space, values: Mapping[str, Any], fallback: Path) -> TunedRecipe:
    """Write `recipe` with `values` set beside it, as `NAME-tuned.toml`, and return where.

    There its paths, and the modules that its code imports, mean what they mean in the original. If that folder
    cannot be written it goes to the folder `fallback`, its paths rewritten. The written recipe has been read
    back: raises what `read_recipe` raises, which would be a bug.
    """
    beside = os.access(recipe.parent, os.W_OK)
    path = recipe.with_name(f"{recipe.stem}-tuned.toml") if beside else fallback / f"{recipe.stem}-tuned.toml"
    wanted = space.tables_with(values)
    moved = {} if beside else moved_references(wanted, recipe.resolve().parent, path.resolve().parent)
    for key, reference in moved.items():
        set_at(wanted, key, reference)
    text, kept = rewritten(recipe.read_text(encoding="utf-8"), wanted, {**values, **moved})
    note = "" if kept else " Its comments could not be kept."
    head = f"# Written by edge-export tune from {recipe.name}.{note}\n"
    if tomllib.loads(text) != wanted:
        raise InternalError(
            f"{path} would not say what was meant", fix="report this as a bug, with the recipe"
        )
    write_bytes(path, (head + _without_head(text)).encode())
    read_recipe(path)
    return TunedRecipe(path, kept)


def _without_head(text: str) -> str:
    """Return `text` without the line that an earlier tuning put at its top."""
    first, _, rest = text.partition("\n")
    return rest if first.startswith("# Written by edge-export tune") else text

"""`edge-export students`: the catalogue of small networks, with what each costs for a given input."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from exporter.cli.terminal.console import Column, Console, pass_console, speaking
from exporter.cli.views import figures
from exporter.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporter.jobs.students import Surveyed, Unsuited, Wish
    from exporter.students.catalogue import Family

_MOST_AXES = 4


def _complete_family(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from exporter.students.catalogue import FAMILIES

    return [
        CompletionItem(name, help=family.description)
        for name, family in FAMILIES.items()
        if name.startswith(incomplete)
    ]


@click.command("students", short_help="List small networks to distil into, and what each costs.")
@click.option(
    "--family",
    "names",
    metavar="NAME",
    multiple=True,
    shell_complete=_complete_family,
    help="Only this family, with its options; may be given several times.",
)
@click.option("--input", "shape", metavar="AxBxC", help="Input shape with its batch, such as 1x3x224x224.")
@click.option("--classes", type=click.IntRange(min=1), metavar="N", help="Width of the output.")
@click.option("--width", type=float, default=1.0, show_default=True, help="Scale of channels and heads.")
@click.option("--depth", type=float, default=1.0, show_default=True, help="Scale of blocks and layers.")
@click.option("--no-latency", is_flag=True, help="Only count; export and time nothing.")
@speaking
@pass_console
def command(
    console: Console,
    *,
    names: tuple[str, ...],
    shape: str | None,
    classes: int | None,
    width: float,
    depth: float,
    no_latency: bool,
) -> None:
    """List the student catalogue: parameters, multiply-accumulates, bytes and this host's latency.

    Without --input each family is shown as it was published. Latency is the median of single inferences of
    the exported float ONNX file, one thread, in a process of its own. A recipe takes a student by name:
    [[compress]] method = "student", family = "NAME".
    """
    from exporter.students.catalogue import FAMILIES, family_of

    families = [family_of(name) for name in dict.fromkeys(names)] or list(FAMILIES.values())
    wanted = None if shape is None else read_shape(shape)
    with console.work() as (progress, _):
        from exporter.jobs.students import Wish, survey

        wish = Wish(wanted, classes, width, depth)
        found, unsuited = survey(families, wish, latency=not no_latency, progress=progress)
    if console.json:
        console.answer_json(describe(found, unsuited, wish))
        return
    for family in families if names else []:
        _show_family(console, family)
    _show_figures(console, found)
    for entry in unsuited if names else []:
        console.tell(f"{entry.family.name} is left out: {entry.reason}")
    if no_latency:
        return
    console.answer(f"Latency is this {platform.machine()} host's, float32, one thread: no phone's.")


def read_shape(text: str) -> tuple[int, ...]:
    """Return the sizes that `AxBxC` spells; `UsageError` for anything else."""
    if re.fullmatch(r"[1-9][0-9]{0,6}(x[1-9][0-9]{0,6})+", text) and text.count("x") < _MOST_AXES:
        return tuple(int(size) for size in text.split("x"))
    raise UsageError(
        f"--input {text!r} is no shape", fix="write sizes with the batch first, such as 1x3x224x224 or 1x128"
    )


def describe(found: Sequence[Surveyed], unsuited: Sequence[Unsuited], wish: Wish) -> dict[str, Any]:
    """Return the survey as plain data."""
    from exporter.artifacts import to_plain

    return {
        "width": wish.width,
        "depth": wish.depth,
        "families": [
            {
                "name": entry.family.name,
                "description": entry.family.description,
                "paper": entry.family.paper,
                "takes": entry.family.takes.value,
                "inputs": to_plain(entry.inputs),
                "batch": entry.batch,
                "classes": entry.classes,
                **to_plain(entry.figures),
                "file_bytes": entry.file_bytes,
                "p50_ms": entry.p50_ms,
                "options": {
                    name: {"default": option.default, "choices": list(option.choices), "help": option.help}
                    for name, option in entry.family.options.items()
                },
            }
            for entry in found
        ],
        "unsuited": [{"name": entry.family.name, "reason": entry.reason} for entry in unsuited],
    }


def _show_family(console: Console, family: Family) -> None:
    console.heading(family.name, f"{family.description}; {family.paper}")
    rows = [
        [name, _default(option.default), option.help + _choices(option.choices)]
        for name, option in family.options.items()
    ]
    console.answer_table((Column("option", fold=False), Column("default"), Column("what it does")), rows)
    console.answer()


def _default(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(choices: Sequence[int | str]) -> str:
    return f" ({', '.join(map(str, choices))})" if choices else ""


def _show_figures(console: Console, found: Sequence[Surveyed]) -> None:
    columns = [
        Column("family", fold=False),
        Column("input", fold=False),
        Column("classes", right=True),
        Column("parameters", right=True),
        Column("MACs", right=True),
        Column("weights", right=True),
        Column("ONNX", right=True),
        Column("host\nms", right=True),
    ]
    rows = [
        [
            entry.family.name,
            "x".join(str(axis) for axis in (entry.batch, *entry.inputs[0].shape[1:])),
            str(entry.classes),
            figures.count(entry.figures.parameters),
            figures.count(entry.figures.macs),
            figures.byte_size(entry.figures.weight_bytes),
            figures.byte_size(entry.file_bytes),
            figures.milliseconds(entry.p50_ms),
        ]
        for entry in found
    ]
    if all(entry.p50_ms is None for entry in found):
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    console.answer_table(columns, rows)

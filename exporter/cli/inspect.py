"""`edge-export inspect`: what a model, a recipe or a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli.terminal.console import Column, Console, named_once, pass_console, speaking
from exporter.cli.views import figures
from exporter.cli.views.contract import contract_pairs

if TYPE_CHECKING:
    from exporter.artifacts import Coverage
    from exporter.jobs.inspect import ArtifactPreview, GraphFacts, RuntimeVerdict


@click.command("inspect", short_help="Show what a model, recipe or bundle holds.")
@click.argument("path", metavar="MODEL|RECIPE|BUNDLE", type=click.Path(path_type=Path))
@click.option("--trust-code", is_flag=True, help="Load a .pt2 or whole-module .pt that a recipe names.")
@speaking
@pass_console
def command(console: Console, path: Path, trust_code: bool) -> None:
    """Show operators, parameters, multiply-accumulates and sizes, and which runtimes take the file.

    A model is an .onnx file; of an .ort or .tflite file its tensors and the contract that it carries are
    shown. For a RECIPE the model is loaded and exported first; a BUNDLE is a target's folder, or the folder
    of a whole build.
    """
    if path.is_dir():
        from exporter.cli.views.bundle import show_folder

        show_folder(console, path)
        return
    from exporter.system.files import require_file

    require_file(path, what="the file")
    if path.suffix.lower() in (".ort", ".tflite"):
        _show_flatbuffer(console, path)
        return
    inspect = _inspect_recipe if path.suffix == ".toml" else _inspect_file
    facts, previews = inspect(console, path, trust_code)
    from exporter.jobs.inspect import judge_runtimes
    from targets.discovery import all_targets

    # A recipe's float graph is never delivered, so who would run it as it is does not matter.
    verdicts = () if path.suffix == ".toml" else judge_runtimes(facts, all_targets())
    if console.json:
        console.answer_json(describe(path, facts, verdicts, previews))
    else:
        show(console, path, facts, verdicts, previews)


def _show_flatbuffer(console: Console, path: Path) -> None:
    from exporter.artifacts import to_plain
    from exporter.model.carried import inspect_flatbuffer

    facts = inspect_flatbuffer(path)
    size = path.stat().st_size
    if console.json:
        console.answer_json({"path": str(path), "file_bytes": size, **to_plain(facts)})
        return
    console.heading(path.name, f".{facts.format}, {figures.byte_size(size)}")
    quantized = [
        (spec.name, spec.quantization) for spec in (*facts.inputs, *facts.outputs) if spec.quantization
    ]
    console.answer_pairs(
        [
            ("inputs", "; ".join(str_of(spec) for spec in facts.inputs)),
            ("outputs", "; ".join(str_of(spec) for spec in facts.outputs)),
            *((f"{name} is", text) for name, text in quantized),
            *(
                contract_pairs(facts.model, facts.contract)
                or [("contract", "none: it carries no edge.contract")]
            ),
        ]
    )


def _inspect_file(
    console: Console, path: Path, _trust_code: bool
) -> tuple[GraphFacts, tuple[ArtifactPreview, ...]]:
    from exporter.jobs.inspect import inspect_onnx, preview_artifacts, refuse_other
    from targets.discovery import all_targets

    if path.suffix.lower() != ".onnx":
        raise refuse_other(path)
    with console.work() as (progress, _), progress.step(f"read {path.name}"):
        facts = inspect_onnx(path)
    return facts, preview_artifacts(path, all_targets())


def _inspect_recipe(
    console: Console, path: Path, trust_code: bool
) -> tuple[GraphFacts, tuple[ArtifactPreview, ...]]:
    from exporter.cli.build import choose_targets
    from exporter.jobs.inspect import inspect_plan, previews_of
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import read_recipe

    recipe = read_recipe(path)
    plan = make_plan(recipe, choose_targets(recipe, ()), trust_code=trust_code)
    with console.work() as (progress, log), progress.step(f"load and export {recipe.model.name}"):
        facts = inspect_plan(plan, log=log)
    return facts, previews_of(plan)


def describe(
    path: Path,
    facts: GraphFacts,
    verdicts: tuple[RuntimeVerdict, ...],
    previews: tuple[ArtifactPreview, ...],
) -> dict[str, Any]:
    """Return the facts of one graph, and who runs it, as plain data."""
    from exporter.artifacts import to_plain

    return {
        "path": str(path),
        "file_bytes": path.stat().st_size,
        **to_plain(facts),
        "runtimes": to_plain(verdicts),
        "artifacts": to_plain(previews),
    }


def show(
    console: Console,
    path: Path,
    facts: GraphFacts,
    verdicts: tuple[RuntimeVerdict, ...],
    previews: tuple[ArtifactPreview, ...],
) -> None:
    """Answer with the facts of one graph, and who runs it."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in sorted(facts.opsets.items()))
    console.heading(path.name, f"opset {opsets}; IR {facts.ir_version}; made by {facts.producer}")
    console.answer_pairs(
        [
            ("inputs", "; ".join(str_of(spec) for spec in facts.inputs)),
            ("outputs", "; ".join(str_of(spec) for spec in facts.outputs)),
            ("parameters", f"{figures.count(facts.parameters)} in {figures.byte_size(facts.constant_bytes)}"),
            ("work", _work(facts)),
            ("arithmetic", f"quantised ({facts.quantized_by})" if facts.quantized_by else "float"),
            *contract_pairs(facts.model, facts.contract),
        ]
    )
    console.answer()
    console.answer_table(
        (
            Column("operator"),
            Column("count", right=True),
            Column("MACs", right=True),
            Column("share", right=True),
            Column("constants", right=True),
        ),
        [
            [
                fact.op if fact.domain == "ai.onnx" else f"{fact.domain}::{fact.op}",
                str(fact.count),
                figures.count(fact.macs) if fact.macs else "",
                figures.share(fact.macs / facts.macs) if fact.macs else "",
                figures.byte_size(fact.weight_bytes) if fact.weight_bytes else "",
            ]
            for fact in facts.operators
        ],
    )
    if facts.static_coverage is not None:
        _show_coverage(console, facts.static_coverage)
    if verdicts:
        _show_verdicts(console, verdicts)
    _show_previews(console, previews)


def _show_coverage(console: Console, coverage: Coverage) -> None:
    console.answer()
    console.heading(
        "static_wi8_ai8 would quantise",
        f"{coverage.quantized_count} of {len(coverage.layers)} operators, "
        f"{figures.share(coverage.mac_share)} of MACs, {figures.share(coverage.weight_share)} of weights",
    )
    reasons = [reason.partition(": ") for reason in coverage.reasons()]
    rows = [
        [op, str(number), why]
        for (op, _, why), number in zip(reasons, coverage.reasons().values(), strict=True)
    ]
    if rows:
        columns = (Column("stays float", fold=False), Column("count", right=True), Column("because"))
        console.answer_table(columns, rows)


def _show_verdicts(console: Console, verdicts: tuple[RuntimeVerdict, ...]) -> None:
    console.answer()
    console.answer("who runs this graph as it is", style="bold")
    rows = [
        [verdict.target, verdict.runtime, "yes" if verdict.takes else f"no: {verdict.reason}"]
        for verdict in verdicts
    ]
    console.answer_table(
        (Column("target", fold=False), Column("runtime", fold=False), Column("takes it")), named_once(rows)
    )


def _show_previews(console: Console, previews: tuple[ArtifactPreview, ...]) -> None:
    console.answer()
    console.answer("what a build makes of it", style="bold")
    rows = [
        [
            preview.target,
            preview.artifact or "nothing",
            f"refused: {preview.refused}" if preview.refused else ", ".join(preview.runtimes),
        ]
        for preview in previews
    ]
    console.answer_table(
        (Column("target", fold=False), Column("artifact", fold=False), Column("run by")), named_once(rows)
    )


def str_of(spec: Any) -> str:
    """Return a tensor spec as `image float32[batch, 1, 32, 32]`."""
    return f"{spec.name} {spec.dtype}[{', '.join(str(axis) for axis in spec.shape)}]"


def _work(facts: GraphFacts) -> str:
    """Return the multiply-accumulates, and what they were counted with."""
    text = f"{figures.count(facts.macs)} multiply-accumulates"
    if facts.assumed_axes:
        text += f" with {', '.join(f'{axis} = {size}' for axis, size in facts.assumed_axes.items())}"
    if facts.uncounted:
        text += (
            f"; not counted, shapes unknown: {len(facts.uncounted)} nodes ({', '.join(facts.uncounted[:3])})"
        )
    return text

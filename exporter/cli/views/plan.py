"""How a plan is shown: what would be made, for whom, and what is refused and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.cli.terminal.console import Column, Console, named_once

if TYPE_CHECKING:
    from exporter.recipe.compression import CompressTable
    from exporter.recipe.planning import Plan


def show_plan(console: Console, plan: Plan, again: str) -> None:
    """Answer with `plan`, nothing having been loaded; `again` is the command that makes it."""
    facts = describe_plan(plan)
    if console.json:
        console.answer_json(facts)
        return
    model = facts["model"]
    console.heading(f"{model['name']} {model['version']}", f"from {model['source']} ({facts['origin']})")
    console.answer()
    console.answer("would make", style="bold")
    columns = (Column("artifact", fold=False), Column("for", fold=False), Column("run by"))
    rows = [
        [planned["artifact"], target, ", ".join(runtimes)]
        for planned in facts["artifacts"]
        for target, runtimes in planned["wanted_by"].items()
    ]
    console.answer_table(columns, named_once(rows))
    if facts["refused"]:
        console.answer()
        console.answer("refused", style="bold")
        columns = (Column("artifact", fold=False), Column("for", fold=False), Column("because"))
        rows = [[refusal["artifact"], refusal["target"], refusal["reason"]] for refusal in facts["refused"]]
        console.answer_table(columns, rows)
    console.answer()
    console.answer_pairs(_terms(facts))
    console.answer_commands("nothing was made; to make it", [again])


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return `plan` as plain data."""
    recipe = plan.recipe
    return {
        "model": {
            "name": recipe.model.name,
            "version": recipe.model.version,
            "source": recipe.model.factory or str(recipe.model.path),
        },
        "origin": plan.origin.value,
        "targets": list(plan.targets),
        "artifacts": [
            {
                "artifact": str(planned.spec),
                "file": planned.spec.file_name(recipe.model.name),
                "wanted_by": {target: list(runtimes) for target, runtimes in planned.wanted_by.items()},
            }
            for planned in plan.artifacts
        ],
        "refused": [
            {"target": refusal.target, "artifact": str(refusal.spec), "reason": refusal.reason}
            for refusal in plan.refused
        ],
        "needs_calibration": plan.needs_calibration,
        "calibration": _source_of(recipe.data.calibration),
        "evaluation": _source_of(recipe.data.evaluation),
        "metric": recipe.data.metric,
        "training": _source_of(recipe.data.training),
        "compress": [_step(step) for step in recipe.compress],
        "quantize": {
            "scheme": recipe.quantize.scheme,
            "rule": recipe.quantize.rule,
            "keep": list(recipe.quantize.keep),
            "recover": list(recipe.quantize.recover),
            "max_drop": recipe.quantize.max_drop,
            "max_drop_verdict": recipe.quantize.max_drop_verdict,
            "conv_int4": recipe.quantize.conv_int4,
        },
    }


def _step(step: CompressTable) -> dict[str, Any]:
    """Return one step of `[[compress]]` as its author wrote it."""
    return step.model_dump(mode="json", exclude_unset=True)


def _source_of(table: Any) -> str | None:
    """Return one phrase for a data source of the recipe, as its author wrote it."""
    if table is None:
        return None
    source, where = table.get("source", "?"), table.get("path") or table.get("callable") or ""
    return f"{source} {where}".strip()


def _terms(facts: dict[str, Any]) -> list[tuple[str, str]]:
    quantize = facts["quantize"]
    calibration = facts["calibration"] or "none"
    use = f"; ranges by {quantize['rule']}" if facts["needs_calibration"] else "; no artifact needs it"
    terms = [
        ("calibration", f"{calibration}{use}"),
        (
            "evaluation",
            f"{facts['evaluation'] or 'none'}; metric {facts['metric'] or 'agreement with the float model'}",
        ),
    ]
    if facts["compress"]:
        terms.append(("compress", "; ".join(_sentence(step) for step in facts["compress"])))
        terms.append(("training", facts["training"] or "none"))
    if quantize["max_drop"] is not None:
        terms.append(("budget", f"at most {quantize['max_drop']:g} points lost"))
    if quantize["keep"]:
        terms.append(("kept in float", ", ".join(quantize["keep"])))
    return terms


def _sentence(step: dict[str, Any]) -> str:
    """Return a step of compression in a few words, its training's keys left out."""
    keys = (f"{key} {value}" for key, value in step.items() if key not in {"method", "train"})
    return " ".join([step["method"], *keys])

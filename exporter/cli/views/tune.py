"""How a search is shown: the front as a table, the chosen point, and what to type next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporter.cli.terminal.console import Column, Console
from exporter.cli.terminal.text import typed_path
from exporter.cli.views import figures

if TYPE_CHECKING:
    from exporter.search.points import Findings, Point
    from exporter.search.trial import Goal, TrialFigures
    from exporter.search.tuning import Question, Tuned, TuneRequest


def show_question(console: Console, question: Question, request: TuneRequest, again: str) -> None:
    """Answer with what a search would try, nothing having been loaded; `again` is the command that runs it."""
    from exporter.search.trial import goals_of

    table = question.table
    goals = goals_of(table.objectives, question.recipe.data.metric)
    limits = table.limits.model_dump(exclude_none=True)
    if console.json:
        console.answer_json(
            {
                "model": question.model,
                "study": request.study,
                "storage": _shown_storage(request),
                "trials": request.trials,
                "objectives": list(table.objectives),
                "constraints": limits,
                "space": {knob.key: knob.describe() for knob in question.space.knobs},
            }
        )
        return
    console.heading(question.model, f"study {request.study} in {_shown_storage(request)}")
    console.answer()
    console.answer("would search", style="bold")
    columns = (Column("key", fold=False), Column("values"))
    console.answer_table(columns, [[knob.key, knob.describe()] for knob in question.space.knobs])
    console.answer()
    console.answer_pairs(
        [
            (
                "objectives",
                ", ".join(f"{'highest' if goal.maximize else 'lowest'} {goal.label}" for goal in goals),
            ),
            ("constraints", ", ".join(f"{name} {value:g}" for name, value in limits.items()) or "none"),
            ("judged by", f"{table.artifact}, on {_judged_on(question)}"),
            ("trials", f"{request.trials} in all, by every process of this study"),
        ]
    )
    console.answer_commands("nothing was run; to run it", [again])


def _shown_storage(request: TuneRequest) -> str:
    from exporter.search.addresses import masked

    return masked(request.url)


def _judged_on(question: Question) -> str:
    if question.recipe.data.validation is not None:
        return "data.validation (data.evaluation stays unseen)"
    return "data.evaluation, which the search then fits: better hold out data.validation"


def show_tuned(console: Console, tuned: Tuned) -> None:
    """Answer with the end of a search."""
    from exporter.search.results import document

    findings = tuned.findings
    if console.json:
        paths = {path.name: str(path) for path in tuned.files}
        console.answer_json({"recipe": str(tuned.recipe.path), "files": paths, **document(findings)})
        return
    console.heading(findings.model, f"study {findings.study}: {_count(findings.points)}")
    console.answer()
    shown = findings.front if findings.chosen in findings.front else (*findings.front, findings.chosen)
    keys = sorted({key for point in shown for key in point.values})
    console.answer_table(
        _columns(findings, keys), [*_original(findings, keys), *_rows(findings, shown, keys)]
    )
    console.answer()
    console.answer(f"* trial {findings.chosen.number}: {findings.why}", style="bold")
    console.answer("latency is this host's, p50 of single inferences with one thread", style="dim")
    console.answer_list("notes", _notes(tuned))
    console.answer_list("failed and stopped", _reasons(findings.points))
    console.answer_commands("written", [typed_path(path) for path in (tuned.recipe.path, *tuned.files)])
    console.answer_commands("next", [f"edge-export build {typed_path(tuned.recipe.path)}"])


def _count(points: Sequence[Point]) -> str:
    outcomes: dict[str, int] = {}
    for point in points:
        outcomes[point.outcome.value] = outcomes.get(point.outcome.value, 0) + 1
    words = {
        "complete": "finished",
        "pruned": "stopped early",
        "failed": "failed",
        "running": "still running",
    }
    return f"{len(points)} trials, " + ", ".join(f"{n} {words[outcome]}" for outcome, n in outcomes.items())


def _columns(findings: Findings, keys: Sequence[str]) -> list[Column]:
    goals = findings.goals
    return [
        Column("trial", right=True, fold=False),
        *(Column(_heading(goal), right=True, fold=False) for goal in goals),
        *(Column(_shortest(key), fold=True) for key in keys),
    ]


def _heading(goal: Goal) -> str:
    units = {
        "latency": "p50\nms",
        "size": "size",
        "download": "down-\nload",
        "macs": "MACs",
        "parameters": "para-\nmeters",
    }
    return units.get(goal.name, goal.label.removeprefix("device:"))


def _shortest(key: str) -> str:
    """Return a key over two lines: where it is, and what it is."""
    table, _, name = key.rpartition(".")
    return f"{table}\n{name}"


def _original(findings: Findings, keys: Sequence[str]) -> list[list[str]]:
    if findings.original is None:
        return []
    cells = [_figure(goal, _value(goal, findings.original)) for goal in findings.goals]
    return [["original", *cells, *("" for _ in keys)]]


def _value(goal: Goal, measured: TrialFigures) -> float | None:
    try:
        return goal.value(measured)
    except KeyError:
        return None


def _rows(findings: Findings, shown: Sequence[Point], keys: Sequence[str]) -> list[list[str]]:
    return [
        [
            f"{'* ' if point == findings.chosen else ''}{point.number}",
            *(_figure(goal, value) for goal, value in zip(findings.goals, point.objectives, strict=True)),
            *(_said(point.values, key) for key in keys),
        ]
        for point in shown
    ]


def _figure(goal: Goal, value: float | None) -> str:
    match goal.name:
        case "size" | "download":
            return figures.byte_size(value)
        case "latency":
            return figures.milliseconds(value)
        case "macs" | "parameters":
            return figures.count(value)
    return figures.ABSENT if value is None else f"{value:.4g}"


def _said(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return ""
    value = values[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _notes(tuned: Tuned) -> list[str]:
    notes = []
    if tuned.findings.chosen.broken:
        notes.append(
            f"trial {tuned.findings.chosen.number} is outside the constraints: {tuned.findings.chosen.broken[0]}"
        )
    if not tuned.recipe.kept_text:
        notes.append(f"the comments of the recipe could not be kept in {tuned.recipe.path.name}")
    running = [point for point in tuned.findings.points if point.outcome.value == "running"]
    notes += [
        f"trial {point.number} is still running on {point.worker.partition('/')[0]}" for point in running
    ]
    return notes


def _reasons(points: Sequence[Point]) -> list[str]:
    """Return one line for each reason that trials ended early for, with their numbers."""
    by_reason: dict[str, list[int]] = {}
    for point in points:
        if point.reason:
            by_reason.setdefault(point.reason, []).append(point.number)
    return [
        f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {reason}"
        for reason, numbers in by_reason.items()
    ]

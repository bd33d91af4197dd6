"""How the end of a build is shown: one table, what it found, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.terminal.console import Column, Console
from exporter.cli.terminal.text import typed_path
from exporter.cli.views import figures
from exporter.cli.views.compression import show_compression
from exporter.cli.views.recovery import show_recoveries

if TYPE_CHECKING:
    from exporter.artifacts import Latency, ModelFigures
    from exporter.bundle.report import ArtifactEntry, Report


def show_report(console: Console, path: Path, report: Report, more: Sequence[str] = ()) -> None:
    """Answer with a finished build: `path` is its folder, `report` what it reports.

    `more` are commands that the caller adds to what can be typed next.
    """
    if console.json:
        console.answer_json({"path": str(path), "report": report.document()})
        return
    model = report.model
    parameters, size = figures.count(model.parameters), figures.byte_size(model.float_bytes)
    console.heading(f"{model.name} {model.version}", f"{parameters} parameters, {size} as float32")
    console.answer()
    console.answer_table(_columns(report), [*_reference_row(report), *_artifact_rows(report)])
    if report.compression is not None:
        show_compression(console, report.compression)
    show_recoveries(console, report.recovery)
    console.answer()
    for line in _explanations(report):
        console.answer(line, style="dim")
    console.answer_list("notes", _notes(report))
    console.answer_list("refused", [f"{r.artifact} for {r.target}: {r.reason}" for r in report.refused])
    console.answer_commands("next", [*next_commands(path, report), *more])


def next_commands(path: Path, report: Report) -> list[str]:
    """Return what to type after this build, ready to paste."""
    lines = [f"edge-export validate {typed_path(path / target.folder)}" for target in report.targets.values()]
    if (path / "report.html").is_file():
        lines.append(f"xdg-open {typed_path(path / 'report.html')}")
    lines.append(f"edge-export publish {typed_path(path)} REGISTRY")
    return lines


def _columns(report: Report) -> list[Column]:
    metric = _metric_name(report) or "agree"
    return [
        Column("file", fold=False),
        Column("scheme", fold=False),
        Column("size", right=True, fold=False),
        Column("times\nsmaller", right=True, fold=False),
        Column("MACs\nquant", right=True, fold=False),
        Column("SQNR\ndB", right=True, fold=False),
        Column(metric, right=True),
        Column("change\npoints", right=True, fold=False),
        Column("host\np50 ms", right=True, fold=False),
    ]


def _metric_name(report: Report) -> str | None:
    tasks = (artifact.evidence.task for artifact in report.artifacts)
    return next((task.metric for task in tasks if task), None)


def _reference_row(report: Report) -> list[list[str]]:
    """Return the float model's row, which the others are measured against."""
    task = next((a.evidence.task for a in report.artifacts if a.evidence.task), None)
    latency: Latency | ModelFigures | None = report.model.float_latency
    if report.compression is not None:
        # The float graph of this build is the compressed one: the model as it was is in the compression's figures.
        latency = report.compression.original
    return [
        [
            "float",
            "float32",
            figures.byte_size(report.model.float_bytes),
            "",
            "",
            "",
            "" if task is None else f"{task.reference:.4f}",
            "",
            figures.milliseconds(latency.p50_ms) if latency else "",
        ]
    ]


def _artifact_rows(report: Report) -> list[list[str]]:
    return [_artifact_row(artifact) for artifact in report.artifacts]


def _artifact_row(artifact: ArtifactEntry) -> list[str]:
    scheme, evidence = artifact.scheme, artifact.evidence
    fidelity, task, latency = evidence.fidelity, evidence.task, evidence.latency
    if task:
        score, lost = f"{task.value:.4f}", figures.points(task.drop_points)
    else:
        score, lost = figures.share(fidelity.agreement if fidelity else None), figures.ABSENT
    return [
        f".{artifact.format}",
        scheme,
        figures.byte_size(artifact.size_bytes),
        figures.times(artifact.times_smaller),
        figures.ABSENT if scheme.startswith("float") else figures.share(artifact.coverage.mac_share),
        figures.decibels(fidelity.sqnr_db if fidelity else None),
        score,
        lost,
        figures.milliseconds(latency.p50_ms if latency else None),
    ]


def _explanations(report: Report) -> list[str]:
    """Return how the columns came about, so that no figure is taken for another."""
    artifacts = report.artifacts
    lines = ["MACs quant: share of multiply-accumulates in operators whose weights are quantised."]
    metric = _metric_name(report) or "agreement"
    fidelity = next((a.evidence.fidelity for a in artifacts if a.evidence.fidelity), None)
    if fidelity:
        lines.append(f"SQNR and {metric} against the float model, over {fidelity.samples} samples.")
    hosts: dict[tuple[int, int], set[str]] = {}
    for artifact in artifacts:
        latency = artifact.evidence.latency
        if latency:
            hosts.setdefault((latency.runs, latency.threads), set()).add(latency.host)
    for (runs, threads), names in sorted(hosts.items()):
        plural = "" if threads == 1 else "s"
        where = "; ".join(sorted(names))
        lines.append(
            f"Host p50: median of {runs} runs, {threads} thread{plural} ({where}); never a device's latency."
        )
    reasons: dict[str, list[str]] = {}
    for artifact in artifacts:
        if artifact.evidence.not_run:
            reasons.setdefault(artifact.evidence.not_run, []).append(artifact.artifact)
    return lines + [f"Not run: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _notes(report: Report) -> list[str]:
    notes = [f"{a.artifact}: {note}" for a in report.artifacts for note in a.notes]
    return [*report.findings, *notes]

"""The front as a picture: every trial, the front among them, the chosen point and the original.

One panel for two objectives; with more, one for each pair with the first. Colours are Okabe and Ito's (2008),
which people with any colour vision tell apart; shapes say the same once more.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from exporter.search.points import Findings, Outcome, Point
from exporter.search.trial import Goal, TrialFigures

_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#0072B2", "#D55E00", "#009E73", "#9AA0A6", "#2B2F33"
_PANEL_INCHES = (6.4, 4.6)
_SCALES = {
    "size": (1e-3, "kB"),
    "download": (1e-3, "kB"),
    "macs": (1e-6, "million"),
    "parameters": (1e-3, "thousand"),
}
_TITLES = {"size": "size", "download": "download", "macs": "MACs", "parameters": "parameters"}


def draw_front(findings: Findings) -> dict[str, bytes]:
    """Return the picture as `png` and `svg` bytes; the same findings give the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, *others = findings.goals
    pairs: list[tuple[Goal, Goal | None]] = [(first, other) for other in others] or [(first, None)]
    with mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.edgecolor": _GREY,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "svg.hashsalt": "edge-export",
            "svg.fonttype": "path",
        }
    ):
        figure = Figure(figsize=(_PANEL_INCHES[0] * len(pairs), _PANEL_INCHES[1]), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(pairs), squeeze=False)[0]
        for panel, (up, along) in zip(panels, pairs, strict=True):
            _draw_panel(panel, findings, up, along)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        done = sum(point.outcome is Outcome.COMPLETE for point in findings.points)
        figure.suptitle(
            f"{findings.model}: {done} of {len(findings.points)} trials finished, {len(findings.front)} on the front",
            fontweight="bold",
        )
        return {
            "png": _saved(figure, "png", {"Software": None}),
            "svg": _saved(figure, "svg", {"Date": None}),
        }


def _saved(figure: Any, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _draw_panel(panel: Any, findings: Findings, up: Goal, along: Goal | None) -> None:
    finished = [point for point in findings.points if point.outcome is Outcome.COMPLETE]
    on_front = [point for point in finished if point in findings.front]
    within = [point for point in finished if point.is_candidate and point not in findings.front]
    broken = [point for point in finished if not point.is_candidate]
    place = _Places(findings.goals, up, along)
    panel.scatter(
        *place.of(broken), marker="x", s=34, c=_GREY, label="outside the constraints" if broken else None
    )
    panel.scatter(
        *place.of(within), s=34, c=_BLUE, alpha=0.45, linewidths=0, label="trial" if within else None
    )
    x, y = place.of(on_front)
    if along is not None and len(findings.goals) == 2 and len(x) > 1:
        order = sorted(range(len(x)), key=x.__getitem__)
        panel.plot(
            [x[i] for i in order],
            [y[i] for i in order],
            color=_BLUE,
            linewidth=1.2,
            alpha=0.6,
            drawstyle="steps-pre" if along.maximize else "steps-post",
            zorder=1,
        )
    panel.scatter(x, y, s=56, c=_BLUE, edgecolors="white", linewidths=0.8, label="front", zorder=3)
    panel.scatter(
        *place.of([findings.chosen]),
        s=210,
        marker="*",
        c=_ORANGE,
        edgecolors="white",
        label="chosen",
        zorder=5,
    )
    _mark_original(panel, findings.original, place)
    panel.annotate(
        f"trial {findings.chosen.number}",
        tuple(axis[0] for axis in place.of([findings.chosen])),
        xytext=(9, -13),
        textcoords="offset points",
        color=_ORANGE,
        fontweight="bold",
    )
    panel.set_xlabel("trial" if along is None else _axis_label(along))
    panel.set_ylabel(_axis_label(up))
    panel.grid(visible=True, color="#E6E8EA", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(0.1)


def _mark_original(panel: Any, original: TrialFigures | None, place: _Places) -> None:
    if original is None:
        return
    try:
        x, y = place.of_figures(original)
    except KeyError:  # a device's figure, which only artifacts of trials have
        return
    panel.scatter(
        [x],
        [y],
        s=64,
        marker="D",
        facecolors="white",
        edgecolors=_GREEN,
        linewidths=1.8,
        label="original",
        zorder=4,
    )


class _Places:
    """Where points lie in one panel, in the units of its axes."""

    def __init__(self, goals: Sequence[Goal], up: Goal, along: Goal | None) -> None:
        self._up, self._along = up, along
        self._index = {goal.name: number for number, goal in enumerate(goals)}

    def of(self, points: Sequence[Point]) -> tuple[list[float], list[float]]:
        """Return the x and y of `points`."""
        along = self._along
        x = [float(p.number) if along is None else self._scaled(along, p.objectives) for p in points]
        return x, [self._scaled(self._up, p.objectives) for p in points]

    def of_figures(self, figures: TrialFigures) -> tuple[float, float]:
        """Return the x and y of figures that belong to no trial."""
        x = 0.0 if self._along is None else self._along.value(figures) * _scale(self._along)
        return x, self._up.value(figures) * _scale(self._up)

    def _scaled(self, goal: Goal, objectives: Sequence[float]) -> float:
        return objectives[self._index[goal.name]] * _scale(goal)


def _scale(goal: Goal) -> float:
    return _SCALES.get(goal.name, (1.0, ""))[0]


def _axis_label(goal: Goal) -> str:
    arrow = "higher is better" if goal.maximize else "lower is better"
    if goal.name in _SCALES:
        return f"{_TITLES[goal.name]} ({_SCALES[goal.name][1]}), {arrow}"
    if goal.name == "latency":
        return f"latency, host p50 (ms), {arrow}"
    return f"{goal.label.removeprefix('device:')}, {arrow}"

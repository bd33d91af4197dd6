"""How a bench is shown: one table of times or instructions, what follows from it, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.cli.terminal.console import Column, Console
from exporter.cli.views import figures

_SHOWN_OPERATORS = 8
_SHOWN_LAYERS = 8
_LEAST_NOISE = 0.01
_SAME = 0.03
"""Ratios nearer to one than this are not called faster or slower."""


def show_bench(console: Console, report: Mapping[str, Any]) -> None:
    """Answer with a bench's report, as `exporter.benching` makes it."""
    device = report["device"]
    name = device["board"] or device["cpu"] or device["machine"]
    versions = sorted({f"{item['runtime']} {item['version']}" for item in report["measurements"]})
    console.heading(
        f"{report['model']} on {report['where']}",
        f"{name}, kernel {device['kernel']}, {', '.join(versions)}",
    )
    console.answer()
    if any(item["instructions_m"] is not None for item in report["measurements"]):
        _show_counts(console, report)
        return
    columns = (
        Column("artifact", fold=False),
        Column("runtime", fold=False),
        *(
            Column(title, right=True, fold=False)
            for title in ("threads", "p50\nms", "p90\nms", "first\nms", "load\nms", "noise", "peak\nMB")
        ),
        Column("answers", fold=False),
    )
    console.answer_table(columns, [_row(item) for item in report["measurements"]])
    if "against" in report:
        _show_against(console, report)
    for profile in report["profiles"]:
        if profile["why"] is None:
            _show_profile(console, profile)
    console.answer_list("notes", _notes(report))


def _notes(report: Mapping[str, Any]) -> list[str]:
    notes, fastest = [], report["fastest"]
    if fastest is not None:
        notes.append(
            f"fastest here, and recommended: {fastest['file']} in {fastest['runtime']}, {_threads(fastest['threads'])}"
        )
    best_ms = min((item["p50_ms"] for item in report["measurements"] if item["p50_ms"]), default=0.0)
    notes += [_against_float(item, best_ms) for item in report["int8_against_float"]]
    notes += [f"{item['file']}: did not run: {item['why']}" for item in report["skipped"]]
    notes += [f"{item['file']}: no profile: {item['why']}" for item in report["profiles"] if item["why"]]
    if report["kept"]:
        notes.append(f"kept on the device: {report['kept']}")
    if any(item["throttled"] for item in report["measurements"]):
        notes.append("blocks were throttled (heat or voltage): their times were thrown away")
    if report["measurements"] and all(item["throttled"] is None for item in report["measurements"]):
        notes.append("this device cannot say whether it was throttled")
    return notes


def _against_float(item: Mapping[str, Any], best_ms: float) -> str:
    ratio = item["times_faster"]
    rival = item["float"] or "the same network in float32"
    times = f"{item['p50_ms']:.3g} against {item['float_p50_ms']:.3g} ms"
    if ratio is None or abs(ratio - 1) <= _SAME:
        return f"{item['file']} takes as long here as {rival} ({times})"
    if ratio > 1:
        return f"{item['file']} is {ratio:.2f}× faster here than {rival} ({times})"
    is_best = not item["float"] and item["float_p50_ms"] < best_ms
    advice = "; no file here is faster: add onnx:float32 to the target's artifacts" if is_best else ""
    return f"{item['file']} is {1 / ratio:.2f}× slower here than {rival} ({times}){advice}"


def _show_against(console: Console, report: Mapping[str, Any]) -> None:
    """Answer with this bundle's times over the other's, both measured in turns."""
    other = {
        (item["artifact"], item["runtime"], item["threads"]): item
        for item in report["against"]["measurements"]
    }
    rows = []
    for item in report["measurements"]:
        rival = other.get((item["artifact"], item["runtime"], item["threads"]))
        if rival is None or rival["p50_ms"] is None or item["p50_ms"] is None:
            continue
        noise = max(item["noise"] or 0.0, rival["noise"] or 0.0, _LEAST_NOISE)
        change = item["p50_ms"] / rival["p50_ms"] - 1.0
        verdict = "within noise" if abs(change) <= noise else "slower" if change > 0 else "faster"
        rows.append(
            [
                *(item["artifact"], item["runtime"], str(item["threads"])),
                *(f"{value:.3g}" for value in (rival["p50_ms"], item["p50_ms"])),
                f"{100 * change:+.1f} %",
                verdict,
            ]
        )
    console.answer()
    console.answer(f"against {report['against']['model']}, in turns")
    columns = (
        *(Column(title, fold=False) for title in ("artifact", "runtime")),
        *(Column(title, right=True, fold=False) for title in ("threads", "its p50\nms", "p50\nms", "change")),
        Column("", fold=False),
    )
    console.answer_table(columns, rows)


def _show_profile(console: Console, profile: Mapping[str, Any]) -> None:
    console.answer()
    console.answer(f"where the time of {profile['file']} goes, {_threads(profile['threads'])}")
    columns = (
        *(Column(title, fold=False) for title in ("operator", "as")),
        *(Column(title, right=True, fold=False) for title in ("nodes", "µs", "share")),
    )
    rows = [
        [item["op"], item["work"], str(item["nodes"]), f"{item['us']:.4g}", figures.share(item["share"])]
        for item in profile["operators"]
    ]
    console.answer_table(columns, _shortened(rows, _SHOWN_OPERATORS))
    has_twin = any(item["float_us"] is not None for item in profile["layers"])
    layers = [
        [
            item["layer"],
            f"{item['us']:.4g}",
            *(
                [figures.ABSENT if item["float_us"] is None else f"{item['float_us']:.4g}"]
                if has_twin
                else []
            ),
        ]
        for item in profile["layers"]
    ]
    titles = ("µs", "in float\nµs") if has_twin else ("µs",)
    console.answer_table(
        (Column("layer"), *(Column(title, right=True, fold=False) for title in titles)),
        _shortened(layers, _SHOWN_LAYERS),
    )
    if profile["sentence"]:
        console.answer(profile["sentence"])
    fell_back = [f"{item['layer']} ({item['op']}, {item['us']:.3g} µs)" for item in profile["fell_back"]]
    console.answer_list("fell back to float in this runtime on this device", fell_back)


def _shortened(rows: list[list[str]], count: int) -> list[list[str]]:
    if len(rows) <= count:
        return rows
    return [*rows[:count], [f"… {len(rows) - count} more: --json", *[""] * (len(rows[0]) - 1)]]


def _show_counts(console: Console, report: Mapping[str, Any]) -> None:
    columns = (
        Column("artifact", fold=False),
        Column("runtime", fold=False),
        Column("million\ninstructions", right=True, fold=False),
        Column("answers", fold=False),
    )
    rows = [
        [
            item["artifact"],
            item["runtime"],
            f"{item['instructions_m']:.2f}",
            "same" if item["parity"]["passed"] else "WRONG",
        ]
        for item in report["measurements"]
    ]
    console.answer_table(columns, rows)
    notes = ["instructions of one inference with one thread; how long they take, only a board can say"]
    notes += [f"{item['file']}: did not run: {item['why']}" for item in report["skipped"]]
    if report["kept"]:
        notes.append(f"kept: {report['kept']}")
    console.answer_list("notes", notes)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _row(item: Mapping[str, Any]) -> list[str]:
    def number(key: str) -> str:
        return figures.ABSENT if item[key] is None else f"{item[key]:.3g}"

    return [
        item["artifact"],
        item["runtime"],
        str(item["threads"]),
        _middle(item),
        *(number(key) for key in ("p90_ms", "first_ms", "load_ms")),
        figures.ABSENT if item["noise"] is None else f"{100 * item['noise']:.0f} %",
        figures.ABSENT if item["peak_rss_mb"] is None else f"{item['peak_rss_mb']:.0f}",
        _answers(item),
    ]


def _middle(item: Mapping[str, Any]) -> str:
    """Return the median, or the mean where a program tells no median, or why there is neither."""
    if item["p50_ms"] is not None:
        return f"{item['p50_ms']:.3g}"
    return "throttled" if item["mean_ms"] is None else f"mean {item['mean_ms']:.3g}"


def _answers(item: Mapping[str, Any]) -> str:
    passed = item["parity"]["passed"]
    return "not asked" if passed is None else "same" if passed else "WRONG"

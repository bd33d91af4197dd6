"""The results of `bench_compression.py` as the text of `docs/compression.md`: every number comes from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench_compression_rows import DIGITS, FLOAT, FULL_SIZE, INT4, INT8, INT8_U, TFLITE_INT8, Row

_ESCAPES = re.compile(r"\x1b?\[\d+m")
"""Colours that torch puts into its messages."""

Outcome = Mapping[str, Any]
Outcomes = Mapping[str, Outcome]
ABSENT = "–"

_INTRODUCTION = """# Compression: what each method costs and gains

Made by `python scripts/bench_compression.py --full-size` and `--table docs/compression.md`; do not edit by hand.
`docs/recipe.md` describes the `[[compress]]` tables.

Every figure is of a file that was exported, loaded and run. *Before*, *changed* and *trained* are top-1 on 540
pictures that no training saw: of the model as given, right after the change, and after recovery (20 epochs unless
the row says otherwise, the same for all rows, others' included). One picture is 0.19 points. *Faster* is the
uncompressed float `.onnx` file's time ÷ this file's, one thread, inferences taken in turns in one process on the
x86-64 host that ran the script: it is not a device's. Files of the tutorial and of Torch-Pruning are written by
`torch.onnx.export` alone, which stores more about each node. *Download* is the float file after deflate. *Peak* is the most
resident memory of the process during the steps, torch itself included; *seconds* includes exporting and judging
after each change. MB and KB are 10⁶ and 10³ bytes.
"""


def document(outcomes: Outcomes) -> str:
    """Return the whole document for the rows there are."""
    parts = [_INTRODUCTION]
    for model in dict.fromkeys(row.model for row in DIGITS):
        rows = [row for row in DIGITS if row.model == model and row.key in outcomes]
        if rows:
            parts.append(_digits(model, rows, outcomes))
    parts.append(_runtimes())
    rows = [row for row in FULL_SIZE if row.key in outcomes]
    if rows:
        parts.append("## Full size: half the MACs, every format\n")
        parts.append("Random weights: size, speed and arithmetic are real, accuracy is not spoken of.\n")
        parts += [_full_size(row, outcomes[row.key]) for row in rows]
    return "\n".join(parts)


def one_line(outcome: Outcome) -> str:
    """Return how a row went, for the terminal."""
    if "error" in outcome:
        return f"{outcome['code']}: {outcome['error']}"
    files = {
        name: f"{entry['size_bytes'] / 1e3:.0f} KB {_score(entry['score'])}"
        for name, entry in outcome.get("artifacts", {}).items()
    }
    faster = {name: round(_faster(outcome, name) or 0, 2) for name in outcome["p50_ms"]}
    return f"{outcome['wall_seconds']:.0f} s, {_score(_after(outcome).get('score'))}, {files}, × {faster}"


# --- the digits models -----------------------------------------------------------------------------------


def _digits(model: str, rows: Sequence[Row], outcomes: Outcomes) -> str:
    done = [row for row in rows if "error" not in outcomes[row.key]]
    failed = [row for row in rows if "error" in outcomes[row.key]]
    lines = [f"## {model}\n", "The float model, before it is quantised:\n"]
    lines += _table(
        "method|before|changed|trained|parameters|MACs|float KB|download KB|zeros|faster|seconds|peak MB",
        [_float_row(row, outcomes[row.key], _uncompressed(done, outcomes)) for row in done],
    )
    lines += ["", "What ships, *smaller* against the uncompressed float file:\n"]
    original = outcomes.get(f"{model}/original")
    if original is not None and "error" not in original:
        lines += _table(
            "method|int8 `.onnx` KB|smaller|top-1|faster, signed|unsigned|int8 `.tflite` KB|smaller|top-1|faster",
            [
                _shipped(row, outcomes[row.key], original)
                for row in done
                if row.kind == "recipe" and row.name != "qat-int4"
            ],
        )
        lines += ["", *_int4(model, outcomes)]
        lines += ["", *_bounds(model, outcomes, original)]
    lines += ["", *(line for row in done for line in _remarks(row, outcomes[row.key]))]
    lines += [f"- {row.title}: {_failure(row, outcomes[row.key])}" for row in failed]
    return "\n".join(lines) + "\n"


def _table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    titles = head.split("|")
    return [
        f"| {' | '.join(titles)} |",
        "|" + "|".join(["---", *["---:"] * (len(titles) - 1)]) + "|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def _uncompressed(rows: Sequence[Row], outcomes: Outcomes) -> Mapping[str, Any]:
    """Return the figures of the model as given, which every row that compresses it has taken."""
    found = (
        outcomes[row.key]["compression"]["original"] for row in rows if outcomes[row.key].get("compression")
    )
    figures: Mapping[str, Any] = next(found, {})
    return figures


def _float_row(row: Row, outcome: Outcome, uncompressed: Mapping[str, Any]) -> list[str]:
    first, last = uncompressed, _after(outcome)
    if not _is_trained(outcome):
        last = {**last, **uncompressed}
    return [
        row.title,
        _score(first.get("score")),
        _score(_changed(outcome)),
        _score(last.get("score")) if _is_trained(outcome) else ABSENT,
        _thousands(last["parameters"]),
        f"{last['macs'] / 1e6:.2f} M",
        _kilobytes(last["size_bytes"]),
        _kilobytes(last.get("download_bytes")),
        ABSENT if last.get("zero_share") is None else f"{last['zero_share']:.0%}",
        _times(_faster(outcome, FLOAT)),
        _plain(_seconds(outcome)),
        _plain(_peak(outcome)),
    ]


def _shipped(row: Row, outcome: Outcome, original: Outcome) -> list[str]:
    artifacts = outcome["artifacts"]
    whole = original["model"]["float_bytes"]

    def file(name: str) -> list[str]:
        entry = artifacts.get(name)
        if entry is None:
            return [ABSENT] * 3
        return [_kilobytes(entry["size_bytes"]), _times(whole / entry["size_bytes"]), _score(entry["score"])]

    return [
        row.title,
        *file(INT8),
        _times(_faster(outcome, INT8)),
        _times(_faster(outcome, INT8_U)),
        *file(TFLITE_INT8),
        _times(_faster(outcome, TFLITE_INT8)),
    ]


def _int4(model: str, outcomes: Outcomes) -> list[str]:
    lines = []
    for name, words in (("original", "post-training"), ("qat-int4", "QAT")):
        entry = outcomes.get(f"{model}/{name}", {}).get("artifacts", {}).get(INT4)
        if entry is not None:
            lines.append(
                f"int4 `.onnx`, {words}: {_kilobytes(entry['size_bytes'])} KB, top-1 {_score(entry['score'])}, "
                f"{entry['sqnr_db']:.1f} dB against its own float model.  "
            )
    return lines


def _bounds(model: str, outcomes: Outcomes, original: Outcome) -> list[str]:
    """Return the bounds that the project set itself, each with what was measured."""
    whole = original["model"]["float_bytes"]
    score = original["artifacts"][FLOAT]["score"]
    lines = ["Bounds set beforehand:\n"]

    def judged(words: str, value: float | None, holds: Callable[[float], bool], text: str) -> None:
        if value is not None:
            lines.append(f"- {words}: {text.format(value)}, {'holds' if holds(value) else '**missed**'}")

    for row in DIGITS:
        outcome = outcomes.get(row.key)
        if row.model != model or outcome is None or "error" in outcome:
            continue
        after = _after(outcome)
        if row.name.startswith("prune-"):
            judged(
                f"{row.title}, at most 0.5 points lost",
                100 * (score - after["score"]),
                lambda value: value <= 0.5 + 1e-9,
                "{:+.2f}",
            )
        if row.name == "distill":
            judged(
                "student at least 4× smaller",
                whole / after["size_bytes"],
                lambda value: value >= 4,
                "{:.1f}×",
            )
            judged(
                "and within 1 point",
                100 * (score - after["score"]),
                lambda value: value <= 1 + 1e-9,
                "{:+.2f} lost",
            )
        if row.name == "qat-int4" and INT4 in original["artifacts"] and INT4 in outcome["artifacts"]:
            judged(
                "QAT int4 at least as good as post-training int4",
                100 * (outcome["artifacts"][INT4]["score"] - original["artifacts"][INT4]["score"]),
                lambda value: value >= 0,
                "{:+.2f} points",
            )
        if row.name == "combined" and INT8 in outcome["artifacts"]:
            entry = outcome["artifacts"][INT8]
            judged(
                "combined, int8 `.onnx` at least 7× smaller",
                whole / entry["size_bytes"],
                lambda v: v >= 7,
                "{:.1f}×",
            )
            best = max(
                filter(None, (_faster(outcome, name) for name in (INT8, INT8_U, TFLITE_INT8))), default=None
            )
            judged("combined, fastest int8 file at least 1.6× faster", best, lambda v: v >= 1.6, "{:.2f}×")
    return lines if len(lines) > 1 else []


def _remarks(row: Row, outcome: Outcome) -> list[str]:
    other = outcome.get("other")
    if other is None:
        return []
    if row.kind.startswith("torch_pruning"):
        channels = ", ".join(map(str, other["channels"]))
        return [f"- {row.title}: at pruning_ratio = {other['ratio']}; channel counts {channels}."]
    return [
        f"- The tutorial's float `.pt` has {_kilobytes(other['float_pt_bytes'])} KB, its dynamic int8 `.pt` "
        f"{_kilobytes(other['dynamic_pt_bytes'])} KB (top-1 {_score(other['dynamic_score'])}); "
        f"exporting the latter to ONNX: `{_ESCAPES.sub('', other['dynamic_onnx'])}`."
    ]


def _failure(row: Row, outcome: Outcome) -> str:
    if row.kind == "recipe":
        return f"**{outcome['error']}** ({outcome['code']})"
    return f"fails with `{outcome['error'].partition('failed with ')[2]}`"


# --- reading an outcome ----------------------------------------------------------------------------------


def _after(outcome: Outcome) -> Mapping[str, Any]:
    if "other" in outcome:
        figures: Mapping[str, Any] = outcome["other"]["figures"]["after"]
        return figures
    if outcome.get("compression"):
        after: Mapping[str, Any] = outcome["compression"]["steps"][-1]["after"]
        return after
    score = outcome["artifacts"][FLOAT]["score"]
    model = outcome["model"]
    return {
        "parameters": model["parameters"],
        "macs": model["macs"],
        "size_bytes": model["float_bytes"],
        "score": score,
    }


def _changed(outcome: Outcome) -> float | None:
    if "other" in outcome:
        score: float | None = outcome["other"]["figures"]["changed"]["score"]
        return score
    if not outcome.get("compression"):
        return None
    changed = outcome["compression"]["steps"][0]["changed"]
    return None if changed is None else changed["score"]


def _is_trained(outcome: Outcome) -> bool:
    return "other" in outcome or bool(outcome.get("compression"))


def _seconds(outcome: Outcome) -> float | None:
    if "other" in outcome:
        return float(outcome["other"]["seconds"])
    if not outcome.get("compression"):
        return None
    return float(sum(step["seconds"] for step in outcome["compression"]["steps"]))


def _peak(outcome: Outcome) -> float | None:
    if "other" in outcome:
        return float(outcome["other"]["peak_rss_mb"])
    if not outcome.get("compression"):
        return None
    return float(max(step["peak_rss_mb"] for step in outcome["compression"]["steps"]))


def _faster(outcome: Outcome, name: str) -> float | None:
    times = outcome["p50_ms"]
    return times["original"] / times[name] if name in times else None


# --- full size and runtimes ------------------------------------------------------------------------------


def _full_size(row: Row, outcome: Outcome) -> str:
    if "error" in outcome:
        return f"### {row.model}\n\n**{outcome['error']}** ({outcome['code']})\n"
    step = outcome["compression"]["steps"][-1]
    before, after = outcome["compression"]["original"], step["after"]
    lines = [
        f"### {row.model}\n",
        f"{before['parameters'] / 1e6:.1f} → {after['parameters'] / 1e6:.1f} M parameters, "
        f"{before['macs'] / 1e9:.2f} → {after['macs'] / 1e9:.2f} G MACs, "
        f"float file {before['size_bytes'] / 1e6:.1f} → {after['size_bytes'] / 1e6:.1f} MB; "
        f"pruning took {step['seconds']:.0f} s and {step['peak_rss_mb']:.0f} MB. "
        "*Smaller* and *faster* are against the float `.onnx` before pruning.\n",
    ]
    cells = []
    for name, entry in outcome["artifacts"].items():
        fidelity = "not run here" if entry["not_run"] else f"{entry['sqnr_db']:.1f} dB"
        cells.append(
            [
                f"`{name}`",
                f"{entry['size_bytes'] / 1e6:.1f}",
                _times(before["size_bytes"] / entry["size_bytes"]),
                fidelity,
                _times(_faster(outcome, name)),
            ]
        )
    lines += _table("artifact|MB|smaller|fidelity|faster", cells)
    return "\n".join(lines) + "\n"


def _runtimes() -> str:
    return """## Who gains from zeros

`sparsify` changes no shape. onnxruntime's CPU kernels and LiteRT's are dense: the file, its arithmetic and its
latency stay, as the tables above show; what shrinks is the *download*, because zeros deflate. XNNPACK has sparse
kernels for 1×1 convolutions whose weights a converter has stored in a sparse encoding; the converter used here
writes none. Core ML can store sparse weights; the packages written here do not. 2:4 is a pattern of server GPUs.
To make a model faster on these runtimes, prune, factorise, distil, or quantise it.
"""


def _score(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.2f}"


def _times(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}×"


def _kilobytes(value: float | None) -> str:
    return ABSENT if value is None else f"{value / 1e3:.1f}"


def _plain(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f}"


def _thousands(value: int) -> str:
    return f"{value / 1e3:.1f} k"

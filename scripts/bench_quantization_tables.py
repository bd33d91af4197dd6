"""The results of `bench_quantization.py` as the text of `docs/quantization.md`: every number comes from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench_quantization_rows import CASES, FLOAT, FULL_SIZE, OURS, Case, Row, Way, rows

Outcome = Mapping[str, Any]
Outcomes = Mapping[str, Outcome]
ABSENT = "–"
NOTABLE = 1.05
"""Latencies within 5 % of each other count as equal."""
LEAST_SHARE = 0.05
"""A file that stores fewer of its weights as integers was not quantised, and is no rival."""

_INTRODUCTION = """# Quantisation: ours and what one would use instead

Made by `python scripts/bench_quantization.py --full-size` (NNCF: `--setup-nncf` first) and
`--table docs/quantization.md`; do not edit by hand.

Every row quantises the same float `.onnx` with the same calibration samples, in a process of its own. *Ours* is
`edge-export quantize`. onnxruntime's tools get their own preprocessing, QDQ, signed int8 and weights per channel;
NNCF its defaults. *Drop* is points of top-1 lost on evaluation samples that neither training nor calibration has
seen; a drop below zero is luck, for quantising adds no knowledge, and *p* (exact sign test on the samples where two
files differ) says how likely so uneven a split is between files that are equally good. *Faster* is the float file's
time ÷ this file's, one thread, all files of a case in turns in one process on the x86-64 host that ran the script:
it is not a device's, and signed int8, which ARM wants, is slow there. *Integers* is the share of the weights that is
stored as integers. *Seconds* is loading, calibrating, recovering and writing; *peak* the most resident memory of the
process, which for ours also judges the result on the evaluation samples. KB and MB are 10³ and 10⁶ bytes.
"""


_REASONS = """## Why the rows differ

- `names` under `quantize_static`: it puts every operator on a grid, also the one that adds −10 000 to the attention
  of padding. One step of that grid is 39, so all scores round to one. Ours leaves additions outside of convolutional
  networks, Softmax and LayerNormalization in float.
- `MatMulNBitsQuantizer` takes MatMul with a constant right operand; Gemm and Conv stay float (0 % integers in the
  convolutional networks). Ours takes Gemm and embedding tables too, and stores convolutions as int8.
- int4 against int8 weights: half the bytes are read, and every weight is unpacked before it is multiplied. One token
  at a time waits for memory, and int4 is faster; 128 tokens at once are bound by arithmetic, and int8 is.
- NNCF stores activations as unsigned integers, which x86 with VNNI multiplies much faster than signed ones and ARM
  does not; the same form of ours is `static_wi8_ai8_u`.
- NNCF leaves squeeze-excite branches in float, by a pattern of its own: fewer integers, larger files.
- Where a file of onnxruntime's is larger at the same share of integers, names and a scale and a zero point for every
  operator take the bytes; the networks are small, so this shows.
"""


def document(outcomes: Outcomes, sources: Mapping[str, Outcome]) -> str:
    """Return the whole document for the rows there are."""
    parts = [_INTRODUCTION]
    parts += [_trained(case, outcomes, sources[case.name]) for case in CASES if case.name in sources]
    full = [case for case in FULL_SIZE if case.name in sources]
    if full:
        parts.append(
            "## Full size\n\nRandom weights: SQNR speaks of arithmetic, and nothing speaks of accuracy.\n"
        )
        parts += [_full_size(case, outcomes, sources[case.name]) for case in full]
    parts += [_bounds(outcomes, sources), _REASONS]
    return "\n".join(parts)


def one_line(outcome: Outcome) -> str:
    """Return how a row went, for the terminal."""
    if "error" in outcome:
        return str(outcome["error"])[:160]
    top1 = "" if outcome["top1"] is None else f"{100 * outcome['top1']:6.2f} %  "
    return (
        f"{top1}{outcome['sqnr_db']:5.1f} dB  {outcome['size_bytes'] / 1e3:9.1f} KB  {outcome['seconds']:6.1f} s  "
        f"{outcome['peak_mb']:6.0f} MB peak"
    )


# --- tables ----------------------------------------------------------------------------------------------


def _trained(case: Case, outcomes: Outcomes, source: Outcome) -> str:
    of_case = [row for row in rows() if row.case is case and row.key in outcomes]
    lines = [
        f"## {case.name}\n",
        f"{case.title[0].upper()}{case.title[1:]}: top-1 {100 * source['top1']:.2f} on {source['samples']} samples "
        f"(one is {100 / source['samples']:.2f} points), {source['size_bytes'] / 1e3:.1f} KB as float32, "
        f"{source['p50_ms'].get(FLOAT, float('nan')):.2f} ms; calibrated on {source['calibration_samples']}.\n",
    ]
    for bits, heading in ((8, "int8 weights and activations"), (4, "int4 weights")):
        chosen = [row for row in of_case if row.way.bits == bits]
        lines += _table(
            f"{heading}|tool|drop|SQNR dB|KB|faster|integers|seconds|peak MB",
            [_trained_cells(row, outcomes[row.key], source) for row in chosen],
        )
        lines.append("")
    lines += [line for row in of_case for line in _remarks(row, outcomes[row.key])]
    return "\n".join(lines) + "\n"


def _trained_cells(row: Row, outcome: Outcome, source: Outcome) -> list[str]:
    if "error" in outcome:
        return _failed_cells(row, outcome, columns=9)
    return [
        row.way.title,
        row.way.tool,
        f"{drop_of(outcome, source):+.2f}",
        f"{outcome['sqnr_db']:.1f}",
        f"{outcome['size_bytes'] / 1e3:.1f}",
        _times(_faster(row, source)),
        f"{100 * outcome['integer_share']:.0f} %",
        f"{outcome['seconds']:.1f}",
        f"{outcome['peak_mb']:.0f}",
    ]


def _full_size(case: Case, outcomes: Outcomes, source: Outcome) -> str:
    of_case = [row for row in rows() if row.case is case and row.key in outcomes]
    lines = [
        f"### {case.name}\n",
        f"{case.title}: {source['size_bytes'] / 1e6:.1f} MB as float32, "
        f"{source['p50_ms'].get(FLOAT, float('nan')):.0f} ms; calibrated on {source['calibration_samples']} samples.\n",
    ]
    lines += _table(
        "way|tool|SQNR dB|MB|faster|integers|seconds|peak MB",
        [_full_size_cells(row, outcomes[row.key], source) for row in of_case],
    )
    return "\n".join(lines) + "\n"


def _full_size_cells(row: Row, outcome: Outcome, source: Outcome) -> list[str]:
    if "error" in outcome:
        return _failed_cells(row, outcome, columns=8)
    return [
        row.way.title,
        row.way.tool,
        f"{outcome['sqnr_db']:.1f}",
        f"{outcome['size_bytes'] / 1e6:.1f}",
        _times(_faster(row, source)),
        f"{100 * outcome['integer_share']:.0f} %",
        f"{outcome['seconds']:.0f}",
        f"{outcome['peak_mb']:.0f}",
    ]


def _failed_cells(row: Row, outcome: Outcome, *, columns: int) -> list[str]:
    seconds = f"{outcome['seconds']:.0f}" if "seconds" in outcome else ""
    peak = f"{outcome['peak_mb']:.0f}" if "peak_mb" in outcome else ""
    reason = " ".join(str(outcome["error"]).replace("|", "\\|").split())
    return [row.way.title, row.way.tool, f"**{reason}**", *[""] * (columns - 5), seconds, peak]


def _remarks(row: Row, outcome: Outcome) -> Iterator[str]:
    rungs = outcome.get("rungs")
    if not rungs:
        return
    steps = ", ".join(
        f"{rung['name']} {100 * rung['value']:.2f}" if rung["value"] is not None else rung["name"]
        for rung in rungs
    )
    left = outcome.get("left_float", [])
    floats = f"; left in float: {', '.join(f'`{name}`' for name in left)}" if left else ""
    yield f"- {row.way.title}: {steps}{floats}."


def _table(heading: str, cells: Sequence[Sequence[str]]) -> list[str]:
    if not cells:
        return []
    names = heading.split("|")
    lines = [f"| {' | '.join(names)} |", "|" + "|".join(["---", "---", *["---:"] * (len(names) - 2)]) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in cells]


# --- bounds ----------------------------------------------------------------------------------------------


def _bounds(outcomes: Outcomes, sources: Mapping[str, Outcome]) -> str:
    lines = ["## Bounds set beforehand\n"]
    lines += _judged_digits(outcomes, sources)
    lines += _judged_sizes(outcomes, sources)
    for case in CASES:
        if case.name in sources:
            lines += _judged_against_others(case, outcomes, sources[case.name])
    return "\n".join(lines) + "\n"


def _verdict(what: str, value: float | None, allowed: Callable[[float], bool], shown: str) -> str:
    if value is None:
        return f"- {what}: not measured."
    return f"- {what}: {shown.format(value)}, **{'holds' if allowed(value) else 'does not hold'}**."


def _judged_digits(outcomes: Outcomes, sources: Mapping[str, Outcome]) -> Iterator[str]:
    for case in CASES:
        source = sources.get(case.name)
        if source is None or not case.name.startswith("digits"):
            continue
        for name, limit in (("ours-int8-auto", 0.3), ("ours-int8-budget", 0.3), ("ours-int4-b32", 1.0)):
            drop = _drop(outcomes, f"{case.name}/{name}", source)
            yield _verdict(
                f"{case.name}, {name}, at most {limit} points lost",
                drop,
                lambda v, most=limit: v <= most,
                "{:+.2f}",  # type: ignore[misc]
            )
    for case in CASES:
        outcome = outcomes.get(f"{case.name}/ours-int8-exact")
        if outcome is None:
            continue
        if "error" in outcome:
            yield f"- {case.name}, max_drop 0, ends with a float list: {outcome['error']}, **does not hold**."
            continue
        drop, left = drop_of(outcome, sources[case.name]), len(outcome.get("left_float", []))
        yield _verdict(
            f"{case.name}, max_drop 0, ends with {left} operators in float",
            drop,
            lambda v: v <= 1e-9,
            "{:+.2f} points",
        )


def _judged_sizes(outcomes: Outcomes, sources: Mapping[str, Outcome]) -> Iterator[str]:
    for name, limit in (("bert-base", 59.5), ("gpt2", 68.0)):
        size = _figure(outcomes, f"{name}/ours-int4-b128", "size_bytes", 1e-6)
        yield _verdict(
            f"{name} int4, block 128, at most {limit} MB", size, lambda v, m=limit: v <= m, "{:.1f} MB"
        )  # type: ignore[misc]
        for key, what in (("p50_ms", "128 tokens"), ("one_token_ms", "one token")):
            times = sources.get(name, {}).get(key, {})
            if {"ours-int4-b128", "ours-weight-int8"} <= times.keys():
                ratio = times["ours-weight-int8"] / times["ours-int4-b128"]
                yield _verdict(
                    f"{name} int4 faster than its int8 weights, {what}", ratio, lambda v: v > 1, "{:.2f}×"
                )
    key = "bert-base/ours-int8-auto"
    yield _verdict(
        "bert-base, 16 samples, peak at most 2500 MB",
        _figure(outcomes, key, "peak_mb", 1),
        lambda v: v <= 2500,
        "{:.0f} MB",
    )
    yield _verdict(
        "bert-base, 16 samples, at most 40 s",
        _figure(outcomes, key, "seconds", 1),
        lambda v: v <= 40,
        "{:.0f} s",
    )
    yield "- ResNet-50, 512 samples: `scripts/bench_calibration.py` measures it."


def _judged_against_others(case: Case, outcomes: Outcomes, source: Outcome) -> Iterator[str]:
    """Hold our files against the best of the compared tools: its drop, its size, and the latency of the fastest."""
    for bits in (8, 4):
        of_bits = [row for row in rows() if row.case is case and row.way.bits == bits]
        done = [row for row in of_bits if "error" not in outcomes.get(row.key, {"error": ""})]
        ours = [row for row in done if row.way.tool == OURS and row.way.name not in _UNDRESSED]
        others = [row for row in done if row.way.tool != OURS]
        others = [row for row in others if outcomes[row.key]["integer_share"] >= LEAST_SHARE]
        if not ours:
            continue
        if not others:
            yield f"- {case.name}, {bits} bits: no compared tool quantised anything to hold ours against."
            continue

        def rank(row: Row) -> tuple[float, float]:
            return drop_of(outcomes[row.key], source), -outcomes[row.key]["sqnr_db"]

        rival = min(others, key=rank)
        missed = {row: _misses(row, rival, outcomes, source) for row in ours}
        best = min(ours, key=lambda row: (len(missed[row]), rank(row)))
        verdict = f"**does not hold**: {'; '.join(missed[best])}" if missed[best] else "**holds**"
        yield (
            f"- {case.name}, {best.way.title} ({drop_of(outcomes[best.key], source):+.2f}) against the best other, "
            f"{rival.way.title} ({drop_of(outcomes[rival.key], source):+.2f}), in drop, size and latency: {verdict}."
        )


_UNDRESSED = frozenset({"ours-int8-minmax"})
"""Shown beside the others as what naive ranges give."""


def _misses(row: Row, rival: Row, outcomes: Outcomes, source: Outcome) -> list[str]:
    mine, theirs = outcomes[row.key], outcomes[rival.key]
    misses = []
    if drop_of(mine, source) > drop_of(theirs, source) + 1e-9:
        more = drop_of(mine, source) - drop_of(theirs, source)
        luck = ", and the other gained on the float model" if drop_of(theirs, source) < 0 else ""
        misses.append(f"loses {more:.2f} points more ({_chance(mine, theirs)}{luck})")
    if mine["size_bytes"] > theirs["size_bytes"]:
        shares = [round(100 * outcome["integer_share"]) for outcome in (mine, theirs)]
        misses.append(
            f"{100 * (mine['size_bytes'] / theirs['size_bytes'] - 1):.1f} % larger "
            f"({shares[0]} % of its weights are integers, of the other's {shares[1]} %)"
        )
    times = source["p50_ms"]
    fastest = min((times[name] for name in _names_of_others(rival.way) if name in times), default=None)
    if fastest is not None and row.way.name in times and times[row.way.name] > NOTABLE * fastest:
        misses.append(f"{100 * (times[row.way.name] / fastest - 1):.0f} % slower than the fastest of them")
    return misses


def _chance(mine: Outcome, theirs: Outcome) -> str:
    """Return how many samples tell two files apart, and how likely such a split is if neither is better."""
    lost = sum(a < b for a, b in zip(mine["right"], theirs["right"], strict=True))
    won = sum(a > b for a, b in zip(mine["right"], theirs["right"], strict=True))
    return f"{lost} samples for it, {won} for ours; p = {sign_test(lost, won):.2f}"


def sign_test(lost: int, won: int) -> float:
    """Return the two-sided p of an exact sign test (McNemar 1947, on the samples where two files differ)."""
    count = lost + won
    tail = sum(math.comb(count, k) for k in range(min(lost, won) + 1)) / 2**count
    return min(1.0, 2 * tail)


def _names_of_others(rival: Way) -> list[str]:
    return sorted({row.way.name for row in rows() if row.way.tool != OURS and row.way.bits == rival.bits})


# --- reading an outcome ----------------------------------------------------------------------------------


def drop_of(outcome: Outcome, source: Outcome) -> float:
    """Return points of top-1 lost against the float file."""
    return 100 * float(source["top1"] - outcome["top1"])


def _drop(outcomes: Outcomes, key: str, source: Outcome) -> float | None:
    outcome = outcomes.get(key)
    return None if outcome is None or "error" in outcome else drop_of(outcome, source)


def _figure(outcomes: Outcomes, key: str, name: str, factor: float) -> float | None:
    outcome = outcomes.get(key)
    return None if outcome is None or "error" in outcome else factor * float(outcome[name])


def _faster(row: Row, source: Outcome) -> float | None:
    times = source["p50_ms"]
    return times[FLOAT] / times[row.way.name] if FLOAT in times and row.way.name in times else None


def _times(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}×"

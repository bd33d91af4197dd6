"""Numbers that say how close two sets of outputs are, and how well outputs do a task.

Pure numpy. Inputs are lists over samples of `{output name: array}`, reference first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from exporter.artifacts import Fidelity
from exporter.errors import CalibrationError, InputError
from exporter.system.user_code import call_guarded

Outputs = Mapping[str, np.ndarray]
Metric = Callable[[Sequence[Outputs], np.ndarray], float]

SQNR_CEILING_DB = 200.0
"""Reported when outputs are bit-identical, where the ratio itself would be infinite."""


def compare_outputs(reference: Iterable[Outputs], candidate: Iterable[Outputs]) -> Fidelity:
    """Return the fidelity of `candidate` against `reference`, pooled over samples and outputs.

    Both are read once, sample by sample, and never held.

    SQNR is 10·log10(Σ r² / Σ (r − c)²), cosine is Σ r·c / (‖r‖·‖c‖), both over all outputs flattened, where
    the reference is finite. One sample that holds most of the signal of three or more may not vouch for the
    others: then the SQNR is that of the others, if it is lower. Integer outputs (indices) take part like
    floats. The worst fidelity there is (−200 dB) goes to a candidate that is not finite where the reference
    is, that has other shapes, and to a reference without one finite element.

    Raises `CalibrationError` when there is no sample to compare.
    """
    elements = compared = 0
    signal = noise = dot = norm = largest = 0.0
    by_sample: list[tuple[float, float]] = []
    agreements: list[bool] = []
    for want, have in zip(reference, candidate, strict=True):
        before = signal, noise
        for name, wanted in want.items():
            r, c = wanted.astype(np.float64), have[name].astype(np.float64)
            if r.shape != c.shape or (~np.isfinite(c) & np.isfinite(r)).any():
                return _worst(len(by_sample) + 1)
            usable = np.isfinite(r)
            elements, compared = elements + r.size, compared + int(usable.sum())
            r, c = r[usable], c[usable]
            signal += float(np.sum(r * r))
            noise += float(np.sum((r - c) ** 2))
            dot += float(np.sum(r * c))
            norm += float(np.sum(c * c))
            largest = max(largest, float(np.max(np.abs(r - c), initial=0.0)))
        by_sample.append((signal - before[0], noise - before[1]))
        agreements.extend(same_class(want, have))
    if not by_sample:
        raise CalibrationError("there are 0 samples to compare on", fix="give at least one sample")
    if elements and not compared:
        return _worst(len(by_sample))
    return Fidelity(
        sqnr_db=min(_decibels(signal, noise), _decibels_of_the_quieter(by_sample)),
        cosine=dot / float(np.sqrt(signal * norm)) if signal * norm > 0 else float(noise == 0.0),
        max_abs_error=largest,
        agreement=float(np.mean(agreements)) if agreements else None,
        samples=len(by_sample),
    )


def _decibels_of_the_quieter(by_sample: Sequence[tuple[float, float]]) -> float:
    """Return the SQNR without the loudest of `by_sample` (signal, noise), if that one drowns the others."""
    loudest = max(range(len(by_sample)), key=lambda index: by_sample[index][0])
    rest = [pair for index, pair in enumerate(by_sample) if index != loudest]
    signal, noise = sum(pair[0] for pair in rest), sum(pair[1] for pair in rest)
    if len(rest) < 2 or by_sample[loudest][0] <= signal:
        return SQNR_CEILING_DB
    return _decibels(signal, noise)


def _worst(samples: int) -> Fidelity:
    return Fidelity(-SQNR_CEILING_DB, 0.0, float(np.finfo(np.float32).max), None, samples)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return SQNR_CEILING_DB
    if signal == 0.0:
        return -SQNR_CEILING_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -SQNR_CEILING_DB, SQNR_CEILING_DB))


def same_class(want: Outputs, have: Outputs) -> list[bool]:
    """Return arg-max agreement along the last axis of the first output, one verdict per position."""
    name = next(iter(want))
    if want[name].ndim < 2 or want[name].shape[-1] < 2:
        return []
    return list(np.ravel(want[name].argmax(-1) == have[name].argmax(-1)))


def top1(outputs: Sequence[Outputs], labels: np.ndarray) -> float:
    """Return the share of samples whose arg-max of the first output is the label, 0..1.

    `labels` is int [samples]; a `CalibrationError` names both counts when they differ, and what the labels or
    the output are when those cannot be class numbers and scores.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise CalibrationError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}, top1 wants one class number per sample",
            fix="store class numbers, not names, floats or one-hot rows, or use a metric of your own",
        )
    if len(labels) != len(outputs):
        raise CalibrationError(
            f"{len(outputs)} evaluation samples but {len(labels)} labels", fix="give one label per sample"
        )
    for output in outputs:
        name, array = next(iter(output.items()))
        if array.ndim == 0 or array.shape[-1] < 2:
            raise CalibrationError(
                f"output {name!r} has shape {list(array.shape)} and no axis of classes, which top1 needs",
                fix='use a metric of your own: metric = "file.py:callable"',
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < array.shape[-1]:
            worst = int(np.argmax((labels < 0) | (labels >= array.shape[-1])))
            raise CalibrationError(
                f"label {labels[worst]} of evaluation sample {worst} is no class of a model with {array.shape[-1]}",
                fix=f"number the classes 0 to {array.shape[-1] - 1}",
            )
    return float(np.mean(top1_hits(outputs, labels)))


def top1_hits(outputs: Sequence[Outputs], labels: np.ndarray) -> np.ndarray:
    """Return bool `[samples]`: whether the arg-max of the first output is the label."""
    guesses = [int(np.ravel(next(iter(output.values())))[_last_row(output)].argmax()) for output in outputs]
    return np.asarray(np.asarray(guesses) == np.asarray(labels))


def _last_row(output: Outputs) -> slice:
    # [1, classes] and [classes] both mean one distribution; a longer leading axis has no single class.
    array = next(iter(output.values()))
    return slice(array.size - array.shape[-1], array.size)


def guard_metric(name: str, metric: Callable[..., object]) -> Metric:
    """Return the user's `metric` so that whatever goes wrong in it, or is no finite number, is an `InputError`."""

    def score(outputs: Sequence[Outputs], labels: np.ndarray) -> float:
        fix = "make it return a number from (outputs, labels)"
        value = call_guarded(f"data.metric {name}", lambda: float(metric(outputs, labels)), fix=fix)  # type: ignore[arg-type]
        if not np.isfinite(value):
            raise InputError(f"data.metric {name} returned {value}", fix="make it return a finite number")
        return value

    return score


METRICS: Mapping[str, Metric] = {"top1": top1}

"""What a quantised graph costs on the evaluation data, against the float model on the same samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.artifacts import Drop
from exporter.errors import RecipeError
from exporter.judging.drops import drop_by_metric, drop_of_agreement
from exporter.judging.metrics import Metric, compare_outputs, same_class
from exporter.model.onnx_write import forget_inner_shapes, save_onnx
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.runtimes.worker import read_samples, write_sample

Sample = Mapping[str, np.ndarray]

PROBE_SAMPLES = 16
"""Samples that rank layers: decibels need fewer than points do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a candidate did: points lost with their interval (`None`: neither labels nor classes), and decibels."""

    drop: Drop | None
    sqnr_db: float
    value: float | None


class Judge:
    """Scores candidates in this process under onnxruntime's default optimisation, as an app would load them.

    The float model runs once; its answers wait on disk. `metric` with `labels`, else agreement with the float model.
    `baseline` is the score of the model that drops are counted from, if that is not the float model given.
    """

    def __init__(
        self,
        onnx: Path,
        samples: Iterable[Sample],
        folder: Path,
        *,
        metric_name: str | None,
        metric: Metric | None,
        labels: np.ndarray | None,
        baseline: float | None = None,
    ) -> None:
        self._samples, self._folder, self._labels = samples, folder, labels
        self._metric = metric if labels is not None else None
        self.metric_name = metric_name or "metric" if self._metric is not None else "agreement"
        self._answers = folder / "float"
        self._answers.mkdir(parents=True, exist_ok=True)
        model = OnnxModel(onnx, threads=0)
        self.count = 0
        for number, sample in enumerate(samples):
            write_sample(self._answers, number, model.run(sample))
            self.count = number + 1
        self.reference = self._score()
        self._offset = (
            0.0 if baseline is None or self.reference is None else 100 * (baseline - self.reference)
        )

    def judge(self, quantized: ir.Model) -> Verdict:
        """Return what `quantized` costs on every sample."""
        answers = list(self._run(quantized)) if self._metric is not None else []
        if self._metric is not None and self._labels is not None:
            reference = list(read_samples(self._answers))
            drop = drop_by_metric(self._metric, self._labels, reference, answers).plus(self._offset)
            sqnr = compare_outputs(reference, answers).sqnr_db
            return Verdict(drop, sqnr, self._metric(answers, self._labels))
        verdicts: list[list[bool]] = []

        def noted() -> Iterator[Sample]:
            for want, have in zip(read_samples(self._answers), self._run(quantized), strict=True):
                verdicts.append(same_class(want, have))
                yield have

        sqnr = compare_outputs(read_samples(self._answers), noted()).sqnr_db
        # compare_outputs stops at the first answer that is not finite
        if not verdicts or len(verdicts) < self.count or not verdicts[0]:
            return Verdict(None, sqnr, None)
        drop = drop_of_agreement(verdicts)
        return Verdict(drop, sqnr, 1.0 - drop.points / 100.0)

    def probe(self, quantized: ir.Model) -> float:
        """Return decibels of SQNR on the first few samples only."""
        few = itertools.islice(self._run(quantized), PROBE_SAMPLES)
        return compare_outputs(
            itertools.islice(read_samples(self._answers), min(PROBE_SAMPLES, self.count)), few
        ).sqnr_db

    def require_metric(self) -> None:
        """Raise `RecipeError` unless a drop can be measured at all."""
        first = next(read_samples(self._answers))
        if self._metric is None and not same_class(first, first):
            raise RecipeError(
                "quantize.max_drop needs a metric: there are no labels, and the model's first output has no classes "
                "whose agreement could be counted",
                fix="add labels and a metric to [data], or use gates.min_sqnr_db instead of max_drop",
            )

    def _score(self) -> float | None:
        if self._metric is None or self._labels is None:
            return None
        return self._metric(list(read_samples(self._answers)), self._labels)

    def _run(self, quantized: ir.Model) -> Iterator[Sample]:
        path = self._folder / "candidate.onnx"
        # In their own folder's scratch: weights of the last candidate would otherwise stay beside this one.
        for old in self._folder.glob("candidate.onnx*"):
            old.unlink()
        save_onnx(forget_inner_shapes(quantized.clone()), path)
        model = OnnxModel(path, threads=0)
        for sample in self._samples:
            yield model.run(sample)

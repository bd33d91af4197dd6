"""What a quantised graph costs on the evaluation data, against the float model on the same samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from exporter.arrays import Sample
from exporter.artifacts import Drop
from exporter.errors import RecipeError
from exporter.judging.drops import drop_by_metric, drop_of_agreement
from exporter.judging.metrics import compare_outputs, same_class
from exporter.judging.scoring import Judging
from exporter.model.onnx_write import forget_inner_shapes, save_onnx
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.runtimes.worker import read_samples, write_sample

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

    The float model runs once, when it is first asked about; its answers wait on disk. `judging` with a metric and labels
    scores, else agreement with the float model.
    `baseline` is the score of the model that drops are counted from, if that is not the float model given.
    """

    def __init__(
        self,
        onnx: Path,
        judging: Judging,
        folder: Path,
        *,
        baseline: float | None = None,
    ) -> None:
        self._onnx, self._judging, self._folder, self._baseline = onnx, judging, folder, baseline
        self.metric_name = judging.metric_name or "metric" if judging.scores else "agreement"

    @cached_property
    def _answers(self) -> Path:
        """Where the float model's answers wait: it runs when the first verdict is asked for."""
        answers = self._folder / "float"
        answers.mkdir(parents=True, exist_ok=True)
        model = OnnxModel(self._onnx, threads=0)
        for number, sample in enumerate(self._judging.samples):
            write_sample(answers, number, model.run(sample))
        return answers

    @cached_property
    def count(self) -> int:
        """How many samples judge."""
        return sum(1 for _ in self._answers.iterdir())

    @cached_property
    def reference(self) -> float | None:
        """The float model's own score; `None` without a metric."""
        return self._judging.score(list(read_samples(self._answers))) if self._judging.scores else None

    @property
    def _offset(self) -> float:
        if self._baseline is None or self.reference is None:
            return 0.0
        return 100 * (self._baseline - self.reference)

    def judge(self, quantized: ir.Model) -> Verdict:
        """Return what `quantized` costs on every sample."""
        metric, labels = self._judging.metric, self._judging.labels
        if metric is not None and labels is not None:
            answers = list(self._run(quantized))
            reference = list(read_samples(self._answers))
            drop = drop_by_metric(metric, labels, reference, answers).plus(self._offset)
            sqnr = compare_outputs(reference, answers).sqnr_db
            return Verdict(drop, sqnr, metric(answers, labels))
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
        if not self._judging.scores and not same_class(first, first):
            raise RecipeError(
                "quantize.max_drop needs a metric: there are no labels, and the model's first output has no classes "
                "whose agreement could be counted",
                fix="add labels and a metric to [data], or use gates.min_sqnr_db instead of max_drop",
            )

    def _run(self, quantized: ir.Model) -> Iterator[Sample]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "candidate.onnx"
        # In their own folder's scratch: weights of the last candidate would otherwise stay beside this one.
        for old in self._folder.glob("candidate.onnx*"):
            old.unlink()
        save_onnx(forget_inner_shapes(quantized.clone()), path)
        model = OnnxModel(path, threads=0)
        for sample in self._judging.samples:
            yield model.run(sample)

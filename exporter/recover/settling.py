"""OnnxModel × Dataset × scheme → Settled: how a scheme's numbers are stored so that the budget is kept.

Without a budget and without methods that is the recipe's range rule and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporter.artifacts import Recovery
from exporter.model.onnx_write import save_onnx
from exporter.progress import Progress
from exporter.quantize.integers.encodings import Encodings
from exporter.recover.calibrator import Calibrator
from exporter.recover.candidates import Candidates, Wishes
from exporter.recover.judge import Judge
from exporter.recover.ladder import Budget, Ladder
from exporter.recover.methods.base import Workbench
from exporter.recover.rungs import AUTO, rungs_of, steps_of
from exporter.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Settled:
    """What a scheme's artifacts are made from: the float graph (recovered, or as given) and its encodings."""

    onnx: Path
    encodings: Encodings
    recovery: Recovery | None = None


@dataclass(frozen=True, slots=True)
class Recovering:
    """One float graph, `model` as loaded from `onnx`, and what all its schemes share.

    `axes` are the sizes of its named axes, `trained` the ranges that training has settled; `folder` is scratch.
    """

    model: ir.Model
    onnx: Path
    axes: Mapping[str, int]
    samples: Iterable[Mapping[str, np.ndarray]] | None
    calibrator: Calibrator
    judge: Judge
    trained: Mapping[str, tuple[float, float]]
    folder: Path
    progress: Progress

    def settle(self, scheme: Scheme, wishes: Wishes) -> Settled:
        """Return how `scheme` is stored so that it keeps `wishes.max_drop`.

        Raises `GateError` (14) when it cannot, `RecipeError` for a budget without anything to measure it by.
        """
        candidates = self.candidates(scheme, wishes)
        if wishes.max_drop is None and not wishes.methods:
            return Settled(self.onnx, candidates.start(wishes.rule).encodings)
        candidate, recovery = self._ladder(scheme, wishes, candidates).climb()
        if candidate.model is self.model:
            return Settled(self.onnx, candidate.encodings, recovery)
        path = self.folder / f"recovered-{scheme}.onnx"
        save_onnx(candidate.model, path)
        return Settled(path, candidate.encodings, recovery)

    def candidates(self, scheme: Scheme, wishes: Wishes) -> Candidates:
        """Return what a ladder of `scheme` climbs with."""
        return Candidates(
            self.model, scheme, wishes, self.calibrator, self.axes, is_trained=bool(self.trained)
        )

    def _ladder(self, scheme: Scheme, wishes: Wishes, candidates: Candidates) -> Ladder:
        steps = steps_of(wishes.methods) or (rungs_of(scheme) if self.samples is not None else ())
        rules: tuple[str, ...] = (wishes.rule,)
        climbs = wishes.max_drop is not None and not wishes.methods and not self.trained
        if climbs and wishes.rule != AUTO and scheme.needs_calibration:
            rules = (wishes.rule, AUTO)
        return Ladder(
            scheme=scheme,
            budget=Budget(wishes.max_drop, wishes.verdict),
            judge=self.judge,
            bench=Workbench(
                scheme=scheme,
                samples=self.samples or (),
                encode=lambda changed, keep: candidates.ranges(changed, keep, wishes.rule),
                quantize=candidates.quantized,
            ),
            candidates=candidates,
            rules=rules,
            steps=steps,
            progress=self.progress,
        )

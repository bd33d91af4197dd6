"""OnnxModel × Dataset × scheme → Settled: how a scheme's numbers are stored so that the budget is kept.

Without a budget and without methods that is the recipe's range rule and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from exporter.artifacts import Coverage, Recovery
from exporter.model.graph import constant_of
from exporter.model.onnx_write import save_onnx
from exporter.progress import Progress
from exporter.quantize.integers.encodings import Encodings
from exporter.recover.calibrator import Calibrator
from exporter.recover.judge import Judge
from exporter.recover.ladder import MEASURED, Budget, Ladder
from exporter.recover.methods.base import Candidate, Workbench
from exporter.recover.methods.clipping import clip_weights
from exporter.recover.rungs import AUTO, rungs_of, steps_of
from exporter.schemes import Method, Scheme

_SPAREABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"})


class Quantize(Protocol):
    """`exporter.quantize.quantize.quantize`."""

    def __call__(
        self, model: ir.Model, scheme: Scheme, *, encodings: Encodings, axes: Mapping[str, int]
    ) -> tuple[ir.Model, Coverage]:
        """Return `model` under `scheme` as `encodings` say, and its coverage."""
        ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the recipe says of quantising: `[quantize]` without the scheme."""

    rule: str
    keep: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    max_drop: float | None = None
    verdict: str = MEASURED
    conv_int4: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a scheme's artifacts are made from: the float graph (recovered, or as given) and its encodings."""

    onnx: Path
    encodings: Encodings
    recovery: Recovery | None = None


@dataclass(frozen=True, slots=True)
class Recovering:
    """One float graph, `model` as loaded from `onnx`, and what all its schemes share.

    `judge` is made when a scheme first asks for it.
    """

    model: ir.Model
    onnx: Path
    axes: Mapping[str, int]
    samples: Iterable[Mapping[str, np.ndarray]] | None
    calibrator: Calibrator
    judge: Callable[[], Judge]
    quantize: Quantize
    settled: Mapping[str, tuple[float, float]]
    folder: Path
    progress: Progress

    def settle(self, scheme: Scheme, wishes: Wishes) -> Settled:
        """Return how `scheme` is stored so that it keeps `wishes.max_drop`.

        Raises `GateError` (14) when it cannot, `RecipeError` for a budget without anything to measure it by.
        """
        candidates = _Candidates(self, self.model, scheme, wishes)
        if wishes.max_drop is None and not wishes.methods:
            return Settled(self.onnx, candidates.start(wishes.rule).encodings)
        candidate, recovery = self._ladder(scheme, wishes, candidates).climb()
        if candidate.model is self.model:
            return Settled(self.onnx, candidate.encodings, recovery)
        path = self.folder / f"recovered-{scheme}.onnx"
        save_onnx(candidate.model, path)
        return Settled(path, candidate.encodings, recovery)

    def _ladder(self, scheme: Scheme, wishes: Wishes, candidates: _Candidates) -> Ladder:
        steps = steps_of(wishes.methods) or (rungs_of(scheme) if self.samples is not None else ())
        rules: tuple[str, ...] = (wishes.rule,)
        climbs = wishes.max_drop is not None and not wishes.methods and not self.settled
        if climbs and wishes.rule != AUTO and scheme.needs_calibration:
            rules = (wishes.rule, AUTO)
        return Ladder(
            scheme=scheme,
            budget=Budget(wishes.max_drop, wishes.verdict),
            judge=self.judge(),
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


@dataclass(frozen=True, slots=True)
class _Candidates:
    """How the ladder's candidates begin, and which of their operators can be spared."""

    shared: Recovering
    model: ir.Model
    scheme: Scheme
    wishes: Wishes

    def start(self, rule: str) -> Candidate:
        encodings = Encodings(
            ranges=self.ranges(self.model, self.wishes.keep, rule),
            bits=self._convolutions_in_int4(),
            keep=self.wishes.keep,
        )
        return self._with_weights(Candidate(self.model, encodings), rule)

    def ranges(self, model: ir.Model, keep: Sequence[str], rule: str) -> dict[str, tuple[float, float]]:
        if self.scheme.method is not Method.STATIC:
            return {}
        return self.shared.calibrator.encode(model, keep, rule)

    def refreshed(self, candidate: Candidate, before: Candidate, rule: str) -> Candidate:
        """Drop encodings of weights that a method changed without saying how to store the new ones."""
        encodings = candidate.encodings
        stale = {
            name
            for held, old in (
                (encodings.channels, before.encodings.channels),
                (encodings.blocks, before.encodings.blocks),
            )
            for name, stored in held.items()
            if old.get(name) is stored and _differs(candidate.model, before.model, name)
        }
        if not stale:
            return candidate
        kept = replace(
            encodings,
            channels={name: stored for name, stored in encodings.channels.items() if name not in stale},
            blocks={name: stored for name, stored in encodings.blocks.items() if name not in stale},
        )
        return self._with_weights(Candidate(candidate.model, kept), rule)

    def spareable(self, candidate: Candidate) -> tuple[str, ...]:
        _, coverage = self.shared.quantize(
            candidate.model, self.scheme, encodings=candidate.encodings, axes=self.shared.axes
        )
        return tuple(layer.name for layer in coverage.layers if layer.quantized and layer.op in _SPAREABLE)

    def keeping(self, candidate: Candidate, names: Sequence[str], rule: str) -> Candidate:
        keep = (*self.wishes.keep, *names)
        encodings = replace(candidate.encodings, keep=keep)
        if self.scheme.method is Method.STATIC:
            encodings = replace(encodings, ranges=self.ranges(candidate.model, keep, rule))
        return Candidate(candidate.model, encodings)

    def quantized(self, candidate: Candidate) -> ir.Model:
        model, _ = self.shared.quantize(
            candidate.model, self.scheme, encodings=candidate.encodings, axes=self.shared.axes
        )
        return model

    def _convolutions_in_int4(self) -> dict[str, int]:
        if not self.wishes.conv_int4 or self.scheme.weight_bits != 4:
            return {}
        return {node.name or "": 4 for node in self.model.graph if node.op_type in {"Conv", "ConvTranspose"}}

    def _with_weights(self, candidate: Candidate, rule: str) -> Candidate:
        """Choose the weights' scales too where the rule says so; trained ones stay as training had them."""
        if rule != AUTO or self.shared.settled or self.scheme.block_size is not None:
            return candidate
        clipped = clip_weights(candidate.model, candidate.encodings.keep)
        channels = {**clipped, **candidate.encodings.channels}
        return Candidate(candidate.model, replace(candidate.encodings, channels=channels))


def _differs(model: ir.Model, before: ir.Model, name: str) -> bool:
    new, old = model.graph.initializers.get(name), before.graph.initializers.get(name)
    if new is None or old is None or new.const_value is old.const_value:
        return new is None
    return not np.array_equal(constant_of(new), constant_of(old))  # type: ignore[arg-type]

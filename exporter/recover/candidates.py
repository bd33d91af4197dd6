"""What the ladder climbs with: how candidates of a scheme begin, change, and spare operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from exporter.model.graph import constant_of
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.quantize import quantize
from exporter.recover.calibrator import Calibrator
from exporter.recover.methods.base import Candidate
from exporter.recover.methods.clipping import clip_weights
from exporter.recover.rungs import AUTO
from exporter.schemes import Method, Scheme

MEASURED, SIGNIFICANT = "measured", "significant"
_SPAREABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"})


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
class Candidates:
    """How the ladder's candidates of one scheme begin, and which of their operators can be spared.

    `axes` are the sizes of the graph's named axes; `is_trained` says that training has settled ranges and weights.
    """

    model: ir.Model
    scheme: Scheme
    wishes: Wishes
    calibrator: Calibrator
    axes: Mapping[str, int]
    is_trained: bool

    def start(self, rule: str) -> Candidate:
        """Return the graph as given, with ranges (and weights) chosen by `rule`."""
        encodings = Encodings(
            ranges=self.ranges(self.model, self.wishes.keep, rule),
            bits=self._convolutions_in_int4(),
            keep=self.wishes.keep,
        )
        return self._with_weights(Candidate(self.model, encodings), rule)

    def ranges(self, model: ir.Model, keep: Sequence[str], rule: str) -> dict[str, tuple[float, float]]:
        """Return the range by `rule` of every activation on a grid; empty for schemes without ranges."""
        if self.scheme.method is not Method.STATIC:
            return {}
        return self.calibrator.encode(model, keep, rule)

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
        """Return the names of the operators whose weights or products are quantised, in graph order."""
        _, coverage = quantize(candidate.model, self.scheme, encodings=candidate.encodings, axes=self.axes)
        return tuple(layer.name for layer in coverage.layers if layer.quantized and layer.op in _SPAREABLE)

    def keeping(self, candidate: Candidate, names: Sequence[str], rule: str) -> Candidate:
        """Return `candidate` with the operators `names` in float too."""
        keep = (*self.wishes.keep, *names)
        encodings = replace(candidate.encodings, keep=keep)
        if self.scheme.method is Method.STATIC:
            encodings = replace(encodings, ranges=self.ranges(candidate.model, keep, rule))
        return Candidate(candidate.model, encodings)

    def quantized(self, candidate: Candidate) -> ir.Model:
        """Return the quantised graph of `candidate`."""
        model, _ = quantize(candidate.model, self.scheme, encodings=candidate.encodings, axes=self.axes)
        return model

    def _convolutions_in_int4(self) -> dict[str, int]:
        if not self.wishes.conv_int4 or self.scheme.weight_bits != 4:
            return {}
        return {node.name or "": 4 for node in self.model.graph if node.op_type in {"Conv", "ConvTranspose"}}

    def _with_weights(self, candidate: Candidate, rule: str) -> Candidate:
        """Choose the weights' scales too where the rule says so; trained ones stay as training had them."""
        if rule != AUTO or self.is_trained or self.scheme.block_size is not None:
            return candidate
        clipped = clip_weights(candidate.model, candidate.encodings.keep)
        channels = {**clipped, **candidate.encodings.channels}
        return Candidate(candidate.model, replace(candidate.encodings, channels=channels))


def _differs(model: ir.Model, before: ir.Model, name: str) -> bool:
    new, old = model.graph.initializers.get(name), before.graph.initializers.get(name)
    if new is None or old is None or new.const_value is old.const_value:
        return new is None
    return not np.array_equal(constant_of(new), constant_of(old))  # type: ignore[arg-type]

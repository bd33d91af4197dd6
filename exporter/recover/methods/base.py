"""What recovery methods have in common: what they are given, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from exporter.quantize.integers.encodings import Encodings
from exporter.schemes import Scheme

DEFAULT_MEMORY_BYTES = 512 << 20
"""What a method may hold of observed activations and their moments at once, beside the model itself."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A float graph and how its numbers are to be stored. Neither is edited: methods clone what they change."""

    model: ir.Model
    encodings: Encodings = field(default_factory=Encodings)


class Encode(Protocol):
    """Choose the activation ranges of a graph anew, after its numbers have changed."""

    def __call__(self, model: ir.Model, keep: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Return a range for every activation that the scheme puts on a grid; empty for schemes without ranges."""
        ...


class Quantize(Protocol):
    """Carry a candidate out."""

    def __call__(self, candidate: Candidate) -> ir.Model:
        """Return the quantised graph of `candidate` under the workbench's scheme."""
        ...


@dataclass(frozen=True, slots=True)
class Workbench:
    """What a method may use: the scheme, calibration samples (re-iterable), and the two verbs above.

    `memory_bytes` bounds what it holds at once beside the model; `advance(done, total)` is told of progress.
    """

    scheme: Scheme
    samples: Iterable[Mapping[str, np.ndarray]]
    encode: Encode
    quantize: Quantize
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    advance: Callable[[int, int], None] = lambda _done, _total: None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a method made. `changed` counts what it touched (layers, pairs); 0 says that it had nothing to do.

    `details` are JSON-ready figures for the report ("pairs", "largest_scale", "skipped": {layer: reason}).
    """

    candidate: Candidate
    changed: int
    details: Mapping[str, Any] = field(default_factory=dict)


Method = Callable[[Candidate, Workbench], Recovered]

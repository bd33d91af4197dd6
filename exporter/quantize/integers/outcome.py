"""What a quantiser answers: the new graph, what it quantised, and why the rest stayed float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Outcome:
    """`quantized` and the keys of `reasons` are node names of the *float* graph that was given."""

    model: ir.Model
    quantized: frozenset[str]
    reasons: Mapping[str, str]

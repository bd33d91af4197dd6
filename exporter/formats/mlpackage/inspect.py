"""What can be checked of an `.mlpackage` without macOS: structure, types, and weights against the torch program.

Runs in a child process. Weights are read back from the finished package, de-quantised, and matched with the
program's own tensors: by name where coremltools kept it, by shape and closeness otherwise.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.arrays import Array
from exporter.formats.mlpackage.convert import features
from exporter.formats.mlpackage.graph import StoredWeight, operations, read_program, read_spec, stored_weights
from exporter.formats.mlpackage.metadata import read_metadata
from exporter.formats.mlpackage.producer import NOT_RUN
from exporter.formats.mlpackage.program import load_program, weight_arrays

# Specification versions of ML Programs (Core ML documentation, "Model Deployment Targets").
_MINIMUM_IOS = {6: "15", 7: "16", 8: "17", 9: "18", 10: "26"}
# Below this a stored tensor is another one; int4 in blocks of 32 measures about 20 dB.
_SAME_TENSOR_DB = 6.0


@dataclass(frozen=True, slots=True)
class Match:
    """A stored weight and the program tensor it came from; errors are sums over its elements."""

    stored: StoredWeight
    source: str
    squared_error: float
    squared_signal: float
    max_abs_error: float

    @property
    def sqnr_db(self) -> float | None:
        """10·log10(signal / error); `None` when the tensor is exact or all zero."""
        return _decibel(self.squared_signal, self.squared_error)


def inspect(request: dict[str, Any]) -> dict[str, Any]:
    """Return the findings on `request["path"]` against `request["program"]`, JSON-ready."""
    path = Path(request["path"])
    spec = read_spec(path)
    program = read_program(path, spec)
    exported = load_program(Path(request["program"]))
    matches, unmatched = match_weights(list(stored_weights(program)), weight_arrays(exported))
    version = int(spec.specificationVersion)
    return {
        "not_run": NOT_RUN,
        "specification_version": version,
        "minimum_ios": _MINIMUM_IOS.get(version, f"unknown (specification {version})"),
        "inputs": features(spec.description.input),
        "outputs": features(spec.description.output),
        **read_metadata(spec, path.name),
        "operators": dict(sorted(collections.Counter(op.op_type for op in operations(program)).items())),
        "weights": _summary(matches, unmatched),
    }


def match_weights(
    stored: list[StoredWeight], sources: Mapping[str, Array]
) -> tuple[list[Match], list[StoredWeight]]:
    """Return the pairs of stored and program tensors, and the stored tensors that have no counterpart.

    All-zero tensors are left out of both: coremltools adds them where a layer has no bias.
    """
    by_shape: dict[tuple[int, ...], list[tuple[str, Array]]] = collections.defaultdict(list)
    for name, values in sources.items():
        by_shape[values.shape].append((name, values))
        if values.ndim == 2 and values.shape[0] != values.shape[1]:
            by_shape[values.T.shape].append((f"{name} (transposed)", values.T))
    matches, unmatched = [], []
    for weight in stored:
        if not weight.values.any():
            continue
        best = _closest(weight, by_shape[weight.values.shape])
        if best is not None and (best.sqnr_db is None or best.sqnr_db >= _SAME_TENSOR_DB):
            matches.append(best)
        else:
            unmatched.append(weight)
    return matches, unmatched


def _closest(weight: StoredWeight, candidates: list[tuple[str, Array]]) -> Match | None:
    """Return the candidate with the least squared error, or the one whose name the weight carries."""
    named = [(name, values) for name, values in candidates if _carries(weight.name, name)]
    pairs = [_compare(weight, name, values) for name, values in named or candidates]
    return min(pairs, key=lambda match: (match.squared_error, match.source), default=None)


def _carries(stored: str, source: str) -> bool:
    # coremltools names constants after torch.export's placeholders: p_ and the path with underscores.
    flat = source.partition(" ")[0].replace(".", "_")
    return any(stored == f"{kind}_{flat}" or stored.startswith(f"{kind}_{flat}_to_fp16") for kind in "pbc")


def _compare(weight: StoredWeight, name: str, values: Array) -> Match:
    error = weight.values.astype(np.float64) - values
    return Match(
        stored=weight,
        source=name,
        squared_error=float(np.square(error).sum()),
        squared_signal=float(np.square(values).sum()),
        max_abs_error=float(np.abs(error).max(initial=0.0)),
    )


def _summary(matches: list[Match], unmatched: list[StoredWeight]) -> dict[str, Any]:
    signal = sum(match.squared_signal for match in matches)
    error = sum(match.squared_error for match in matches)
    return {
        "compared": len(matches),
        "unmatched": sorted(weight.name for weight in unmatched),
        "max_abs_error": max((match.max_abs_error for match in matches), default=0.0),
        "sqnr_db": _decibel(signal, error),
        "stored_as": dict(sorted(collections.Counter(match.stored.stored for match in matches).items())),
        "tensors": [
            {
                "name": match.stored.name,
                "source": match.source,
                "stored_as": match.stored.stored,
                "shape": list(match.stored.values.shape),
                "sqnr_db": match.sqnr_db,
                "max_abs_error": match.max_abs_error,
            }
            for match in matches
        ],
    }


def _decibel(signal: float, error: float) -> float | None:
    return float(10.0 * np.log10(signal / error)) if signal > 0.0 and error > 0.0 else None

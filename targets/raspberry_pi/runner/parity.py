"""Whether a model answers here as it did in the build."""

from __future__ import annotations

import numpy as np

from targets.raspberry_pi.runner.bundle import Json, golden_tensor
from targets.raspberry_pi.runner.errors import ModelError
from targets.raspberry_pi.runner.inference import infer
from targets.raspberry_pi.runner.session import Session


def replay(model: Session, entry: Json, golden: Json) -> Json:
    """Return the largest differences over all golden samples, and whether they are within tolerance."""
    tolerance = golden.get("tolerance", {}).get(entry["file"])
    if not tolerance:
        raise ModelError(
            "E-input",
            10,
            f"golden/golden.json has no tolerance for {entry['file']}",
            "build the bundle again; without one every answer would pass",
        )
    own = reference = 0.0
    compared_own = False
    for sample in golden["samples"]:
        tensors = {name: golden_tensor(file) for name, file in sample["inputs"].items()}
        answers = infer(model, entry, tensors)
        recorded = sample.get("outputs", {}).get(entry["file"], {})
        compared_own = compared_own or bool(recorded)
        own = max(own, _largest_difference(answers, recorded))
        reference = max(reference, _largest_difference(answers, sample["reference"]))
    limits = {"max_abs": own, "max_abs_reference": reference}
    return {
        "samples": len(golden["samples"]),
        "max_abs": own if compared_own else None,
        "max_abs_reference": reference,
        "tolerance": tolerance,
        "passed": all(limits[key] <= limit for key, limit in tolerance.items() if key in limits),
    }


def _largest_difference(answers: dict[str, np.ndarray], files: dict[str, str]) -> float:
    largest = 0.0
    for name, file in files.items():
        if name not in answers:
            raise ModelError("E-input", 10, f"the model has no output {name}", "copy the whole bundle again")
        expected, got = golden_tensor(file), answers[name]
        if expected.shape != got.shape:
            return float("inf")
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        # A NaN compares as within every tolerance; it must fail instead.
        largest = max(
            largest, float(difference.max(initial=0.0)) if np.isfinite(difference).all() else float("inf")
        )
    return largest

"""One inference, with tensors by the names of models.json whatever the file itself calls them."""

from __future__ import annotations

import numpy as np

from targets.raspberry_pi.runner.bundle import Json
from targets.raspberry_pi.runner.errors import ModelError, first_line
from targets.raspberry_pi.runner.session import Session


def by_signature(names: list[str], listed: list[str], tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return `tensors` in signature order: by name where names agree, else in the order of `models.json`."""
    if set(names) <= set(tensors):
        return [tensors[name] for name in names]
    order = listed if set(listed) <= set(tensors) else list(tensors)
    if len(order) != len(names):
        raise ModelError(
            "E-input",
            10,
            f"the model takes {len(names)} tensors ({', '.join(names)}), not {len(tensors)}",
            "give each of them",
        )
    return [tensors[name] for name in order]


def named_outputs(model: Session, entry: Json, answers: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the answers under the names of `models.json`."""
    listed = [spec["name"] for spec in entry["outputs"]]
    names = model.signature()[1]
    if set(names) == set(listed) or len(names) != len(listed):
        return dict(zip(names, answers, strict=True))
    return dict(zip(listed, answers, strict=True))


def infer(model: Session, entry: Json, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the named outputs of one inference."""
    listed = [spec["name"] for spec in entry["inputs"]]
    ordered = by_signature(model.signature()[0], listed, tensors)
    try:
        return named_outputs(model, entry, model.run(ordered))
    except ModelError:
        raise
    except Exception as error:  # the runtimes raise types of their own for shapes and dtypes that do not fit
        raise ModelError(
            "E-input",
            10,
            f"{entry['file']} refused its input: {first_line(error)}",
            "compare shapes and dtypes with models.json",
        ) from error

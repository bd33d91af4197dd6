"""A finished step on disk: data only, named by what it depends on, so that a killed build can go on.

A step's key is a digest of everything its result follows from. Weights are `.safetensors`; the structure is
the method's edit, replayed on the module that the step was given.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from exporter import __version__
from exporter.artifacts import CompressionStep, ModelFigures, to_plain
from exporter.compress.base import Workshop
from exporter.errors import IntegrityError
from exporter.model.source import SourceModel
from exporter.recipe.compression import CompressTable, training_of
from exporter.system.files import canonical_json, digest, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

_RECORD, _WEIGHTS = "done.json", "weights.safetensors"


@dataclass(frozen=True, slots=True)
class SavedStep:
    """A step's result: the model, how to rebuild its structure, and what the report says of it."""

    source: SourceModel
    edit: Mapping[str, Any]
    record: CompressionStep


def key_of(previous: str, table: CompressTable, workshop: Workshop, current: SourceModel) -> str:
    """Return the digest of all that the step's result follows from: two equal keys, two equal results."""
    training = training_of(table, workshop.recipe.training)
    ingredients = {
        "tool": __version__,
        "previous": previous,
        "table": table.model_dump(mode="json"),
        "training": None if training is None else training.model_dump(mode="json"),
        "quantize": workshop.recipe.quantize.model_dump(mode="json"),
        "data": None if workshop.training is None else workshop.training.fingerprint,
        "calibration": None if workshop.calibration is None else workshop.calibration.fingerprint,
        "weights": None if current.module is None else weights_digest(current.module),
    }
    return hashlib.sha256(canonical_json(ingredients)).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's state: names, dtypes, shapes and bytes, in order of name."""
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(_bytes_dtype()).numpy().data)
    return state.hexdigest()


def _bytes_dtype() -> Any:
    import torch

    return torch.uint8


def serialized_weights(module: nn.Module) -> bytes:
    """Return a module's state as `.safetensors`; tied tensors are written out once for each name."""
    state: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()
    }
    content: bytes = save_tensors(state)
    return content


def write_step(folder: Path, key: str, step: SavedStep) -> None:
    """Write `step` into `folder`; its record comes last, so that a half-written step does not count."""
    if step.source.module is None:
        raise TypeError("a compressed model has a torch module")
    write_bytes(folder / _WEIGHTS, serialized_weights(step.source.module))
    document = {
        "key": key,
        "weights_sha256": digest(folder / _WEIGHTS),
        "edit": step.edit,
        "ranges": {name: list(pair) for name, pair in step.source.ranges.items()},
        "record": to_plain(step.record),
    }
    write_json(folder / _RECORD, document)


def finished_edit(folder: Path, key: str) -> Mapping[str, Any] | None:
    """Return the edit of the finished step in `folder`, or `None` if there is none of this key, whole."""
    document = _read(folder)
    if document is None or document["key"] != key or not (folder / _WEIGHTS).is_file():
        return None
    if digest(folder / _WEIGHTS) != document["weights_sha256"]:
        return None
    edit: Mapping[str, Any] = document["edit"]
    return edit


def _read(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        document: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if isinstance(document, dict) and {"key", "weights_sha256", "edit", "record", "ranges"} <= set(
            document
        ):
            return document
    return None


def read_step(folder: Path, current: SourceModel, module: nn.Module) -> SavedStep:
    """Return the step in `folder`, its weights loaded into `module`, which has its structure already."""
    document = _read(folder)
    if document is None:
        raise IntegrityError(f"{folder / _RECORD} vanished while it was read", fix="build without --resume")
    module.load_state_dict(load_tensors((folder / _WEIGHTS).read_bytes()))
    ranges = {name: (float(low), float(high)) for name, (low, high) in document["ranges"].items()}
    source = replace(current, module=module.eval(), ranges=ranges)
    return SavedStep(source, document["edit"], _record_of(document["record"]))


def _record_of(plain: Mapping[str, Any]) -> CompressionStep:
    figures = {
        name: None if plain[name] is None else ModelFigures(**plain[name])
        for name in ("original", "before", "changed", "after")
    }
    rest = {name: value for name, value in plain.items() if name not in figures}
    rest |= {"trainings": tuple(plain["trainings"]), "notes": tuple(plain["notes"])}
    return CompressionStep(**figures, **rest)  # type: ignore[arg-type]

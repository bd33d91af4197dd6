"""What a pruning did, as data: which channels of which layers went, and how to do it again.

An edit is JSON. Replaying it needs no tracing, no data and no importance: the same channels are taken out of the
same layers by torch-pruning's per-layer functions, so that structure (and, from the same weights, every
output) comes out the same wherever it is replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch_pruning import ops
from torch_pruning.pruner import function

from exporter.compress.prune.attention import open_attention
from exporter.compress.prune.graph import CONV1D, is_conv1d
from exporter.errors import InputError

Side = Literal["outputs", "inputs", "parameter"]


@dataclass(frozen=True, slots=True)
class Removal:
    """Channels that leave one side of one layer, or one axis of a parameter that belongs to no layer."""

    target: str
    side: Side
    axis: int
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rescale:
    """Multiply one of `parts` equal shares of a layer's outputs (weights and biases) by `factor`."""

    target: str
    part: int
    parts: int
    factor: float


@dataclass(frozen=True, slots=True)
class Change:
    """What one group of coupled channels loses, and the attributes (module, name, new value) that count it."""

    removals: tuple[Removal, ...]
    attributes: tuple[tuple[str, str, int], ...] = ()
    rescale: Rescale | None = None


def apply_changes(module: nn.Module, changes: Iterable[Change]) -> None:
    """Take the channels out of `module` in place; parameters that were one object stay one object.

    Raises `InputError` when a layer is not there or has no such channels: the edit is of another model.
    """
    ties = tied_parameters(module)
    trained = {name: parameter.requires_grad for name, parameter in _all_parameters(module)}
    changes = tuple(changes)
    for removal in merged_removals(changes):
        _remove(module, removal)
    for change in changes:
        for owner, name, value in change.attributes:
            setattr(module.get_submodule(owner), name, value)
        if change.rescale is not None:
            _rescale(module, change.rescale)
    _tie(module, ties)
    for name, parameter in _all_parameters(module):
        parameter.requires_grad_(trained.get(name, True))


def merged_removals(changes: Iterable[Change]) -> list[Removal]:
    """Return the removals of all `changes` with each side of a layer once.

    Changes of one round count channels as they were before it, and groups may meet in one layer (concatenation).
    """
    together: dict[tuple[str, Side, int], set[int]] = {}
    for change in changes:
        for removal in change.removals:
            together.setdefault((removal.target, removal.side, removal.axis), set()).update(removal.channels)
    return [Removal(*key, tuple(sorted(channels))) for key, channels in together.items()]


def pruner_of(layer: nn.Module) -> Any:
    """Return torch-pruning's functions for `layer`, or `None` if it has none."""
    return CONV1D if is_conv1d(layer) else function.PrunerBox.get(ops.module2type(layer))


def _remove(module: nn.Module, removal: Removal) -> None:
    try:
        if removal.side == "parameter":
            owner, _, name = removal.target.rpartition(".")
            holder, parameter = module.get_submodule(owner), module.get_parameter(removal.target)
            kept = _kept(parameter.shape[removal.axis], removal.channels)
            setattr(holder, name, nn.Parameter(parameter.detach().index_select(removal.axis, kept)))
            return
        layer = module.get_submodule(removal.target)
        pruner = pruner_of(layer)
        outputs = removal.side == "outputs"
        count = pruner.get_out_channels(layer) if outputs else pruner.get_in_channels(layer)
        _kept(count, removal.channels)
        if isinstance(layer, nn.LayerNorm):
            pruner.pruning_dim = -1
        (pruner.prune_out_channels if outputs else pruner.prune_in_channels)(layer, list(removal.channels))
    except (AttributeError, IndexError) as error:
        raise InputError(
            f"the pruning history removes channels of {removal.target}, which the model does not have: {error}",
            fix="replay a history on the model it was made from",
        ) from error


def _kept(count: int, removed: Sequence[int]) -> torch.Tensor:
    gone = set(removed)
    if gone and (max(gone) >= count or len(gone) >= count):
        raise IndexError(f"it has {count} channels, and {max(gone)} is to be removed")
    return torch.tensor([index for index in range(count) if index not in gone], dtype=torch.long)


def _rescale(module: nn.Module, rescale: Rescale) -> None:
    layer = module.get_submodule(rescale.target)
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    axis = 1 if is_conv1d(layer) else 0
    count = weight.shape[axis] // rescale.parts
    with torch.no_grad():
        # a new tensor: the caller may restore the old one
        scaled = weight.detach().clone()
        scaled.narrow(axis, rescale.part * count, count).mul_(rescale.factor)
        layer.weight = nn.Parameter(scaled)
        if bias is not None:
            scaled = bias.detach().clone()
            scaled.narrow(0, rescale.part * count, count).mul_(rescale.factor)
            layer.bias = nn.Parameter(scaled)


# --- parameters that several layers share -----------------------------------------------------------------


def _all_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def tied_parameters(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the names of parameters that are one object, such as an embedding and its output head."""
    names: dict[int, list[str]] = {}
    for name, parameter in _all_parameters(module):
        names.setdefault(id(parameter), []).append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _tie(module: nn.Module, ties: Iterable[tuple[str, ...]]) -> None:
    for first, *others in ties:
        parameter = module.get_parameter(first)
        for name in others:
            if torch.equal(module.get_parameter(name), parameter):
                owner, _, attribute = name.rpartition(".")
                setattr(module.get_submodule(owner), attribute, parameter)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Let the block change layers of `module` (replacing tensors, not writing to them), and undo it after."""
    saved = [
        (child, dict(child.__dict__), dict(child._parameters), dict(child._buffers))
        for child in module.modules()
    ]
    try:
        yield
    finally:
        for child, attributes, parameters, buffers in saved:
            child.__dict__.clear()
            child.__dict__.update(attributes)
            child._parameters.clear()
            child._parameters.update(parameters)
            child._buffers.clear()
            child._buffers.update(buffers)


# --- JSON -------------------------------------------------------------------------------------------------


def to_edit(rounds: Sequence[Sequence[Change]], opened: Sequence[str]) -> dict[str, Any]:
    """Return the edit of prunings that followed each other, on a module whose attentions `opened` were opened."""
    return {
        "kind": "prune",
        "opened": list(opened),
        "rounds": [[_to_json(change) for change in changes] for changes in rounds],
    }


def replay_edit(module: nn.Module, edit: Mapping[str, Any]) -> None:
    """Do to `module`, in place, what `edit` tells; `InputError` (10) if it is not a history of this model."""
    try:
        open_attention(module, only=edit["opened"])
        for changes in changes_of(edit):
            apply_changes(module, changes)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"this is not a pruning history: {type(error).__name__} {error}",
            fix='give the "edit" that a prune step stored, unchanged',
        ) from error


def changes_of(edit: Mapping[str, Any]) -> list[tuple[Change, ...]]:
    """Return the changes of each round of `edit`; `KeyError`, `TypeError` or `ValueError` if it is none."""
    return [tuple(_from_json(change) for change in changes) for changes in edit["rounds"]]


def _to_json(change: Change) -> dict[str, Any]:
    removals: dict[tuple[int, ...], list[Removal]] = {}
    for removal in change.removals:
        removals.setdefault(removal.channels, []).append(removal)
    rescale = change.rescale
    return {
        "remove": [
            {
                "channels": to_ranges(channels),
                "outputs": [item.target for item in items if item.side == "outputs"],
                "inputs": [item.target for item in items if item.side == "inputs"],
                "parameters": [[item.target, item.axis] for item in items if item.side == "parameter"],
            }
            for channels, items in removals.items()
        ],
        "attributes": [list(attribute) for attribute in change.attributes],
        "rescale": None if rescale is None else [rescale.target, rescale.part, rescale.parts, rescale.factor],
    }


def _from_json(data: Mapping[str, Any]) -> Change:
    removals = []
    for entry in data["remove"]:
        channels = from_ranges(entry["channels"])
        removals += [Removal(name, "outputs", 0, channels) for name in entry["outputs"]]
        removals += [Removal(name, "inputs", 1, channels) for name in entry["inputs"]]
        removals += [Removal(name, "parameter", axis, channels) for name, axis in entry["parameters"]]
    rescale = None if data["rescale"] is None else Rescale(*data["rescale"])
    attributes = tuple((owner, name, int(value)) for owner, name, value in data["attributes"])
    return Change(tuple(removals), attributes, rescale)


def to_ranges(channels: Sequence[int]) -> str:
    """Return ascending numbers as text: 0, 1, 2, 5 as `0-2,5`."""
    parts = []
    for _, run in itertools.groupby(enumerate(channels), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ",".join(parts)


def from_ranges(text: str) -> tuple[int, ...]:
    """Return the numbers that `to_ranges` wrote; `ValueError` for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)

"""Proof that a pruning took out what it meant to: the pruned model computes what the masked one does.

Masked means that the removed channels are still there and carry zero: their producers' weights are zero, so
are the weights that read them, and normalisation over channels looks only at those that stay. A pruned model
agrees with it to rounding. A graph that was followed wrongly does not, even where shapes happen to fit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from exporter.compress.prune.edit import Change, Removal, apply_changes, merged_removals, restored
from exporter.compress.prune.graph import is_conv1d
from exporter.errors import UnsupportedError, said
from exporter.model.source import SourceModel, flatten_outputs

_TOLERANCE = 2e-3
"""Of the largest output: sums over fewer terms round differently, wrong channels differ by whole values."""


def arguments_of(source: SourceModel, feeds: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    """Return `feeds` in the order of forward's arguments."""
    return tuple(torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in source.inputs)


def batches_of(source: SourceModel) -> tuple[tuple[Tensor, ...], ...]:
    """Return the example as forward's arguments, and once more with two samples if the first axis is named.

    Zeros would hide mistakes, so float inputs are a fixed pattern around the example.
    """
    rng = np.random.default_rng(0)
    axis = source.inputs[0].shape[0] if source.inputs and source.inputs[0].shape else None
    varied = {}
    for spec in source.inputs:
        array = source.example[spec.name]
        noise = rng.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else 0
        varied[spec.name] = array + noise
    single = arguments_of(source, varied)
    if not isinstance(axis, str):
        return (single,)
    double = {
        spec.name: np.concatenate([varied[spec.name], np.flip(varied[spec.name], 0)], axis=0)
        if spec.shape and spec.shape[0] == axis
        else varied[spec.name]
        for spec in source.inputs
    }
    return single, arguments_of(source, double)


@dataclass(frozen=True, slots=True)
class Probe:
    """Runs a module before and after changes on `batches`."""

    module: nn.Module
    batches: tuple[tuple[Tensor, ...], ...]

    def mismatch(self, changes: Sequence[Change]) -> str | None:
        """Return in words how `module` with `changes` differs from itself masked, or `None` if it does not.

        The module is left as it was.
        """
        try:
            with restored(self.module), torch.no_grad():
                apply_changes(self.module, changes)
                pruned = [self._run(batch) for batch in self.batches]
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - forward is the user's code, and may raise anything
            return f"{said(error)}"
        with restored(self.module), torch.no_grad():
            handles = _mask(self.module, changes)
            try:
                masked = [self._run(batch) for batch in self.batches]
            finally:
                for handle in handles:
                    handle.remove()
        for left, right in zip(pruned, masked, strict=True):
            if [output.shape for output in left] != [output.shape for output in right]:
                return "the outputs' shapes change"
            for output, wanted in zip(left, right, strict=True):
                if _far_apart(output, wanted):
                    return "the channels that stay no longer compute what they did"
        return None

    def _run(self, batch: tuple[Tensor, ...]) -> list[Tensor]:
        return flatten_outputs(self.module(*batch))


def _far_apart(output: Tensor, wanted: Tensor) -> bool:
    if not output.is_floating_point() or not output.numel():
        return not torch.equal(output, wanted)
    error = (output - wanted).abs().max()
    return not bool(error <= _TOLERANCE * wanted.abs().max() + 1e-6)


def _mask(module: nn.Module, changes: Sequence[Change]) -> list[RemovableHandle]:
    handles = (_mask_one(module, removal) for removal in merged_removals(changes))
    return [handle for handle in handles if handle is not None]


def _mask_one(module: nn.Module, removal: Removal) -> RemovableHandle | None:
    channels = torch.tensor(removal.channels, dtype=torch.long)
    if removal.side == "parameter":
        owner, _, name = removal.target.rpartition(".")
        masked = module.get_parameter(removal.target).detach().index_fill(removal.axis, channels, 0)
        setattr(module.get_submodule(owner), name, nn.Parameter(masked))
        return None
    layer: Any = module.get_submodule(removal.target)
    if isinstance(layer, nn.LayerNorm):
        hook = functools.partial(_layer_norm_without, gone=frozenset(removal.channels))
        return layer.register_forward_hook(hook)
    if isinstance(layer, nn.GroupNorm):
        hook = functools.partial(_group_norm_without, gone=frozenset(removal.channels))
        return layer.register_forward_hook(hook)
    weight = getattr(layer, "weight", None)
    if weight is None:
        return None
    if removal.side == "inputs":
        layer.weight = nn.Parameter(_without_inputs(layer, weight.detach(), channels))
        return None
    transposed = is_conv1d(layer) or isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)
    layer.weight = nn.Parameter(weight.detach().index_fill(1 if transposed else 0, channels, 0))
    if getattr(layer, "bias", None) is not None:
        layer.bias = nn.Parameter(layer.bias.detach().index_fill(0, channels, 0))
    return None


def _without_inputs(layer: nn.Module, weight: Tensor, channels: Tensor) -> Tensor:
    transposed = is_conv1d(layer) or getattr(layer, "transposed", False)
    if transposed:
        return weight.index_fill(0, channels, 0)
    if weight.dim() == 1:  # a normalisation: its inputs are its outputs
        return weight.index_fill(0, channels, 0)
    groups = getattr(layer, "groups", 1)
    if not isinstance(groups, int) or groups == 1:
        return weight.index_fill(1, channels, 0)
    masked = weight.clone()
    width, rows = weight.shape[1], weight.shape[0] // groups
    for channel in channels.tolist():
        block = channel // width
        masked[block * rows : (block + 1) * rows, channel % width] = 0
    return masked


def _layer_norm_without(
    layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, gone: frozenset[int]
) -> Tensor:
    kept = torch.tensor([index for index in range(inputs[0].shape[-1]) if index not in gone])
    values = functional.layer_norm(inputs[0][..., kept], (len(kept),), eps=float(layer.eps))  # type: ignore[arg-type]
    for operation, name in ((torch.mul, "weight"), (torch.add, "bias")):
        if getattr(layer, name, None) is not None:
            values = operation(values, layer.get_parameter(name)[kept])
    masked = torch.zeros_like(output)
    masked[..., kept] = values
    return masked


def _group_norm_without(
    layer: nn.GroupNorm, inputs: tuple[Tensor, ...], output: Tensor, *, gone: frozenset[int]
) -> Tensor:
    kept = torch.tensor([index for index in range(inputs[0].shape[1]) if index not in gone])
    weight, bias = (layer.weight[kept], layer.bias[kept]) if layer.affine else (None, None)
    masked = torch.zeros_like(output)
    masked[:, kept] = functional.group_norm(inputs[0][:, kept], layer.num_groups, weight, bias, layer.eps)
    return masked


def require_sound(source: SourceModel, probe: Probe, changes: Sequence[Change]) -> None:
    """Raise `UnsupportedError` (12) unless the model with all `changes` runs and computes what it should."""
    failure = probe.mismatch(changes)
    if failure is None:
        return
    culprit = next(
        (change for change in changes if probe.mismatch([change]) is not None),
        changes[0] if changes else None,
    )
    layer = culprit.removals[0].target if culprit and culprit.removals else source.name
    raise UnsupportedError(
        f"pruning {layer} breaks model {source.name}: {failure}",
        fix=f'keep it: skip = ["{layer}"] in the prune step',
    )

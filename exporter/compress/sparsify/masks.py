"""Which weights go to zero: pure functions of magnitudes. No modules, no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GONE = -1.0
"""The magnitude of a weight that an earlier mask has removed: below every other, so that it stays removed."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """N:M: the `kept` largest of every `group` neighbours along the input axis stay."""

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern that `"2:4"` spells."""
        kept, _, group = text.partition(":")
        return cls(int(kept), int(group))

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


def ramped(sparsity: float, done: float) -> float:
    """Return the sparsity after the share `done` (0..1) of the ramp from 0 to `sparsity`.

    The cubic of Zhu and Gupta 2017 (arXiv:1710.01878), equation 1: fast while weights are redundant, slow
    towards the end.
    """
    return float(sparsity * (1.0 - (1.0 - min(max(done, 0.0), 1.0)) ** 3))


def smallest(magnitudes: Tensor, count: int) -> Tensor:
    """Return a bool mask of the `count` smallest of `magnitudes` (any shape); of equals, the first go first.

    Unlike `torch.topk`, ties have one answer on every machine.
    """
    flat = magnitudes.reshape(-1)
    if count <= 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    threshold = torch.kthvalue(flat, min(count, flat.numel())).values
    chosen = flat < threshold
    ties = torch.nonzero(flat == threshold).reshape(-1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(magnitudes.shape)


def unstructured(
    magnitudes: Mapping[str, Tensor], sparsity: float, *, across_layers: bool
) -> dict[str, Tensor]:
    """Return, by layer, which weights go when the share `sparsity` of the smallest is removed.

    `across_layers` lets all layers compete; otherwise each gives the same share. Counts are rounded as
    `torch.nn.utils.prune` rounds them.
    """
    if not across_layers:
        return {
            name: smallest(values, round(sparsity * values.numel())) for name, values in magnitudes.items()
        }
    flat = torch.cat([values.reshape(-1) for values in magnitudes.values()])
    chosen = smallest(flat, round(sparsity * flat.numel()))
    masks, start = {}, 0
    for name, values in magnitudes.items():
        masks[name] = chosen[start : start + values.numel()].reshape(values.shape)
        start += values.numel()
    return masks


def patterned(
    magnitudes: Mapping[str, Tensor], axes: Mapping[str, int], pattern: Pattern, done: float = 1.0
) -> dict[str, Tensor]:
    """Return, by layer, which weights go so that groups along the input axis (`axes`) hold the pattern.

    With `done` below 1 only that share of a layer's groups is thinned, those that lose least magnitude first.
    """
    return {name: _thin(values, axes[name], pattern, done) for name, values in magnitudes.items()}


def _thin(magnitudes: Tensor, axis: int, pattern: Pattern, done: float) -> Tensor:
    moved = magnitudes.movedim(axis, -1)
    groups = moved.reshape(-1, pattern.group)
    # A stable sort puts the earlier of two equals first, as `smallest` does.
    order = torch.sort(groups, dim=1, stable=True).indices[:, : pattern.group - pattern.kept]
    chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, value=True)
    if done < 1.0:
        lost = torch.where(chosen, groups, torch.zeros_like(groups)).sum(dim=1)
        chosen &= smallest(lost, round(done * len(groups)))[:, None]
    return chosen.reshape(moved.shape).movedim(-1, axis)


def obstacle(inputs: int, pattern: Pattern) -> str | None:
    """Return why a layer with `inputs` features or channels to an output cannot hold `pattern`, if so."""
    if inputs % pattern.group:
        return f"its {inputs} inputs to an output are no multiple of {pattern.group}"
    return None

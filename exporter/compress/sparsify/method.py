"""`method = "sparsify"`: single weights become zero, and stay zero in the file that ships.

The structure of the model does not change, so neither does its file, its arithmetic or, on the runtimes this
tool writes for, its speed: what shrinks is the compressed download. The step says so in its notes.

During training a parametrisation hides the masked weights, so that neither gradients, momentum nor weight
decay can bring them back; it is removed before the model is returned.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exporter.compress.base import StepResult, Workshop
from exporter.compress.retraining import recovery_of
from exporter.compress.sparsify.masks import GONE, Pattern, obstacle, patterned, ramped, unstructured
from exporter.compress.weight_layers import WeightLayer, choose_layers
from exporter.errors import RecipeError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import SparsifyTable
from exporter.training.record import TrainingRecord

RAMP_SHARE = 0.6
"""Share of the optimiser's steps in which a gradual sparsity grows; masks are fixed for the rest."""
RAMP_UPDATES = 100
"""At most this often are masks chosen anew during the ramp."""


def sparsify(source: SourceModel, table: SparsifyTable, workshop: Workshop) -> StepResult:
    """Return `source` with the smallest weights of its linear and convolution layers exactly zero.

    The share `sparsity` (Han et al. 2015, arXiv:1506.02626), over the network or in each layer, or all but N of
    every M neighbours along the input axis (Mishra et al. 2021, arXiv:2104.08378). That axis is what sparse
    tensor cores reduce over: input features of a linear layer, and input channels of a convolution at each
    kernel position (channels-last, as `apex.contrib.sparsity` groups them).

    With `gradual` the sparsity grows during the first part of the training (Zhu and Gupta 2017); only epochs
    that end with the final masks can be the best.

    Raises `RecipeError` when a layer would keep no weight or a skip pattern names nothing,
    `UnsupportedError` when no layer can be made sparse, `CalibrationError` when training lacks data.
    """
    recovery = recovery_of(table, workshop)
    module = copy.deepcopy(source.module)
    if module is None:
        raise UnsupportedError(
            "sparsify changes torch modules, and this model came as ONNX", fix="give a factory"
        )
    layers, skipped = _choose(module, table)
    masks = _Masks(layers, _Goal.of(table))
    masks.require_some_left()
    changed: SourceModel | None = None
    trainings: tuple[TrainingRecord, ...] = ()
    if recovery is not None:
        if not table.gradual:
            masks.advance(1.0)
            changed = replace(source, module=masks.applied_to_copy_of(module))
        with masks.held():
            ramp = masks.ramp if table.gradual else None
            record = workshop.train(module, recovery, "sparsify", after_step=ramp)
        trainings = (record,)
    masks.advance(1.0)
    masks.require_some_left()
    masks.make_permanent()
    return StepResult(
        source=replace(source, module=module.cpu().eval()),
        edit={"kind": "sparsify"},
        changed=changed,
        trainings=trainings,
        notes=_notes(table),
        details={"layers": _by_layer(layers), "sparsity": _share_of(layers), "skipped": skipped},
    )


def replay(module: nn.Module, edit: Mapping[str, Any], source: SourceModel) -> nn.Module:  # noqa: ARG001
    """Return `module` as it is: zeros are weights, and sparsity changes no structure."""
    return module


# --- what is masked --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Goal:
    """What the masks must reach."""

    sparsity: float | None
    across_layers: bool
    pattern: Pattern | None

    @classmethod
    def of(cls, table: SparsifyTable) -> _Goal:
        pattern = None if table.pattern is None else Pattern.parse(table.pattern)
        return cls(table.sparsity, table.scope == "global", pattern)

    def masks(
        self, magnitudes: Mapping[str, Tensor], axes: Mapping[str, int], done: float
    ) -> dict[str, Tensor]:
        """Return which weights are gone when the share `done` (0..1) of the ramp is over."""
        if self.pattern is not None:
            return patterned(magnitudes, axes, self.pattern, ramped(1.0, done))
        return unstructured(magnitudes, ramped(self.sparsity or 0.0, done), across_layers=self.across_layers)


def _choose(module: nn.Module, table: SparsifyTable) -> tuple[tuple[WeightLayer, ...], dict[str, str]]:
    choice = choose_layers(module, table.skip)
    skipped = dict(choice.skipped)
    layers: list[WeightLayer] = []
    for layer in choice.layers:
        reason = None if table.pattern is None else obstacle(_inputs(layer), Pattern.parse(table.pattern))
        if reason is None:
            layers.append(layer)
        else:
            skipped[layer.name] = reason
    if not layers:
        first = next((f"{name}: {reason}" for name, reason in skipped.items()), "it has none with weights")
        raise UnsupportedError(
            f"no layer of this model can be made sparse ({first})",
            fix="remove the sparsify step, loosen skip, or use sparsity in place of pattern",
        )
    return tuple(layers), skipped


def _inputs(layer: WeightLayer) -> int:
    """Return how many features or channels enter one output."""
    inputs = layer.weight.shape[layer.input_axis]
    # A transposed convolution's weight holds the inputs of all its groups on that axis.
    groups = getattr(layer.module, "groups", 1) if layer.input_axis == 0 else 1
    return int(inputs // groups)


class _Hidden(nn.Module):
    """Parametrisation that shows a weight with its masked values as zero.

    The mask is a buffer, so checkpoints hold it and a resumed training goes on with the same one.
    """

    gone: Tensor

    def __init__(self, gone: Tensor) -> None:
        super().__init__()
        # uint8, because not every backend of torch.distributed broadcasts booleans.
        self.register_buffer("gone", gone.to(torch.uint8))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` with exact zeros: a product with the mask would leave -0.0, which deflates worse."""
        return weight.masked_fill(self.gone.bool(), 0.0)


@dataclass(slots=True)
class _Masks:
    """The masks of all layers, how far the ramp is, and the weights they hide."""

    layers: tuple[WeightLayer, ...]
    goal: _Goal
    gone: dict[str, Tensor] = field(default_factory=dict)
    _hidden: dict[str, _Hidden] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gone = {layer.name: torch.zeros_like(layer.weight, dtype=torch.bool) for layer in self.layers}

    def advance(self, done: float) -> None:
        """Choose the masks for the share `done` of the ramp; what is gone stays gone."""
        self.gone = self._chosen(done)

    def ramp(self, step: int, total: int) -> bool:
        """After optimiser step `step` of `total`, let the masks grow if it is time; return whether they are final."""
        end = max(1, math.ceil(RAMP_SHARE * total))
        if step <= end and (step == end or step % max(1, end // RAMP_UPDATES) == 0):
            for name, gone in self._chosen(step / end).items():
                self._hidden[name].gone.copy_(gone)
        return step >= end

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hide masked weights for as long as the workshop lasts; then no trace of it is left in the module."""
        order = {layer.name: list(layer.module._parameters) for layer in self.layers}
        for layer in self.layers:
            self._hidden[layer.name] = _Hidden(self.gone[layer.name])
            parametrize.register_parametrization(layer.module, layer.parameter, self._hidden[layer.name])
        try:
            yield
        finally:
            self.gone = {name: hidden.gone.bool() for name, hidden in self._hidden.items()}
            for layer in self.layers:
                parametrize.remove_parametrizations(layer.module, layer.parameter, leave_parametrized=False)
                # torch puts the parameter back behind its siblings; a state_dict's order is part of the model.
                own = layer.module._parameters
                for key in order[layer.name]:
                    own[key] = own.pop(key)
            self._hidden = {}

    def applied_to_copy_of(self, module: nn.Module) -> nn.Module:
        """Return a copy of `module`, which holds the layers, with the zeros written into it."""
        thinned = copy.deepcopy(module)
        with torch.no_grad():
            for layer in self.layers:
                weight = thinned.get_submodule(layer.name).get_parameter(layer.parameter)
                weight.masked_fill_(self.gone[layer.name], 0.0)
        return thinned.eval()

    def make_permanent(self) -> None:
        """Write the zeros into the weights."""
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.masked_fill_(self.gone[layer.name].to(layer.weight.device), 0.0)

    def require_some_left(self) -> None:
        """Raise `RecipeError` if the goal leaves a layer without any weight: what comes after it sees a constant."""
        for name, gone in self._chosen(1.0).items():
            if bool(gone.all()):
                raise RecipeError(
                    f"sparsity = {self.goal.sparsity} leaves layer {name} none of its {gone.numel()} weights",
                    fix=f'lower sparsity, use scope = "layer", or add skip = ["{name}"]',
                )

    @torch.no_grad()
    def _chosen(self, done: float) -> dict[str, Tensor]:
        magnitudes = {}
        for layer in self.layers:
            hidden = self._hidden.get(layer.name)
            gone = self.gone[layer.name] if hidden is None else hidden.gone.bool()
            stored = _stored(layer)
            magnitudes[layer.name] = stored.abs().masked_fill(gone.to(stored.device), GONE)
        return self.goal.masks(magnitudes, {layer.name: layer.input_axis for layer in self.layers}, done)


def _stored(layer: WeightLayer) -> Tensor:
    """Return the weight itself, without what hides parts of it."""
    if parametrize.is_parametrized(layer.module, layer.parameter):
        hidden: Any = layer.module.parametrizations
        original: Tensor = hidden[layer.parameter].original
        return original
    return layer.weight


# --- what is said of it ----------------------------------------------------------------------------------


def _by_layer(layers: Sequence[WeightLayer]) -> dict[str, dict[str, Any]]:
    counted = {}
    for layer in layers:
        zeros = int((layer.weight == 0).sum())
        counted[layer.name] = {
            "weights": layer.weight.numel(),
            "zeros": zeros,
            "sparsity": zeros / layer.weight.numel(),
        }
    return counted


def _share_of(layers: Sequence[WeightLayer]) -> float:
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


def _notes(table: SparsifyTable) -> tuple[str, ...]:
    notes = [
        "zeros take part in every multiplication: onnxruntime's CPU kernels are dense, so file, arithmetic and "
        "latency stay as they were; what shrinks is the compressed download (download_bytes)",
        "LiteRT's XNNPACK skips zeros only in 1×1 convolutions stored in its own sparse format, which "
        "the .tflite files written here do not use: no gain but the download",
        "Core ML can store sparse weights and skip their zeros; the .mlpackage files written here store them dense",
        "a later step that trains moves the zeros again: let sparsify be the last step that trains",
    ]
    if table.pattern is not None:
        notes.append(
            f"the {table.pattern} pattern is for the sparse units of server GPUs (2:4 there); "
            "no phone or Raspberry Pi runtime that this tool writes for computes it faster"
        )
    return tuple(notes)

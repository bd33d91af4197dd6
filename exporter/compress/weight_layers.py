"""Which layers of a module own a weight matrix that a method may change, and why the others may not."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from exporter.errors import RecipeError

_LEFT_BY_DESIGN = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
)


@dataclass(frozen=True, slots=True)
class WeightLayer:
    """A linear or convolution layer: its name in the model, its module, and the name of its weight there.

    The weight is `[out, in]` (linear, and attention's stacked projection), `[out, in / groups, …kernel]`
    (convolution) or `[in, out / groups, …kernel]` (transposed convolution).
    """

    name: str
    module: nn.Module
    parameter: str = "weight"

    @property
    def weight(self) -> Tensor:
        """The weight itself, as it is now."""
        weight: Tensor = getattr(self.module, self.parameter)
        return weight

    @property
    def input_axis(self) -> int:
        """The axis of the weight that runs over input features or channels."""
        return 0 if isinstance(self.module, _ConvTransposeNd) else 1


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """Layers a method may change, in the module's order, and the reason for each other layer with weights."""

    layers: tuple[WeightLayer, ...]
    skipped: Mapping[str, str]


def choose_layers(module: nn.Module, skip: Sequence[str]) -> LayerChoice:
    """Return the linear and convolution layers of `module` that no `skip` pattern names.

    A pattern is a glob on a layer's dotted name or on that of a module it lives in. Norms, embeddings and
    biases are nobody's target and are not listed. Raises `RecipeError` for a pattern that names no module:
    a misspelt skip would change the very layer it should protect.
    """
    _require_patterns_name_something(module, skip)
    owners = _owners(module)
    layers: list[WeightLayer] = []
    skipped: dict[str, str] = {}
    for name, child in module.named_modules():
        layer = _as_layer(name, child)
        if layer is None:
            if (reason := _stranger(child)) is not None:
                skipped[name] = reason
            continue
        pattern = next((pattern for pattern in skip if is_under(name, pattern)), None)
        if pattern is not None:
            skipped[name] = f"named in skip ({pattern})"
        elif not isinstance(child._parameters.get(layer.parameter), nn.Parameter):
            skipped[name] = "its weight is computed by a parametrisation; remove that first"
        elif len(owners[id(layer.weight)]) > 1:
            others = [
                owner
                for owner in owners[id(layer.weight)]
                if owner != f"{name}.{layer.parameter}".lstrip(".")
            ]
            skipped[name] = f"its weight is also {others[0]}"
        else:
            layers.append(layer)
    return LayerChoice(tuple(layers), skipped)


def is_under(name: str, pattern: str) -> bool:
    """Whether the glob `pattern` names the module `name` or one that holds it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _require_patterns_name_something(module: nn.Module, skip: Sequence[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for pattern in skip:
        if not any(is_under(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise RecipeError(
                f"skip pattern {pattern!r} names no module of the model",
                fix=f"use a module's dotted name or a glob of it, such as {', '.join(near)}",
            )


def _as_layer(name: str, module: nn.Module) -> WeightLayer | None:
    if isinstance(module, nn.Linear | _ConvNd):
        return WeightLayer(name, module)
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return WeightLayer(name, module, "in_proj_weight")
    return None


def _stranger(module: nn.Module) -> str | None:
    """Return why a layer that owns a matrix is neither linear nor a convolution to us, if it does."""
    if isinstance(module, _LEFT_BY_DESIGN):
        return None
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() < 2:
        return None
    return f"{type(module).__name__} is not a linear or convolution layer"


def _owners(module: nn.Module) -> dict[int, list[str]]:
    """Return under which names each parameter is known, by identity; aliases of one module count once."""
    owners: dict[int, list[str]] = {}
    for name, child in module.named_modules():
        for key, parameter in child._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    return owners

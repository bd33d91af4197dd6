"""Which constant of an exported graph is which parameter of the module: whole, turned, or some of its rows.

An exporter renames, transposes, slices and deduplicates. Values tell what came from where, provided no two
parameters are alike, which of fresh biases (all zero) and norms (all one) is never true. So a *probe* is exported
in place of the model: a copy whose every number differs a little from every other.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.model.graph import constant_of, is_float

_NOISE = 1e-3
"""Relative to a parameter's own spread: enough to be unlike, too little to change what the graph looks like."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A constant is `parameter`, or its rows `start … stop` of axis 0, transposed if `turned`, in `shape`."""

    parameter: str
    shape: tuple[int, ...]
    turned: bool = False
    start: int = 0
    stop: int | None = None

    def derive(self, parameter: Tensor) -> Tensor:
        """Return the constant as a view of the parameter, so that gradients reach it."""
        part = parameter if self.stop is None else parameter[self.start : self.stop]
        if self.turned:
            part = part.reshape([size for size in part.shape if size != 1]).transpose(0, 1)
        return part.reshape(self.shape)


def make_probe(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose floating-point parameters hold no two equal numbers, by and large."""
    probe = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            if parameter.is_floating_point():
                spread = max(float(parameter.abs().mean()), 1e-2) * _NOISE
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.add_((noise * spread).to(parameter))
    return probe


def find_origins(graph: ir.Graph, probe: nn.Module) -> dict[str, Origin]:
    """Return where the float constants of `graph`, exported from `probe`, come from, by name.

    Constants that are no parameter's (folded arithmetic, buffers, the model's own numbers) are left out.
    """
    parameters = {
        name: parameter.detach().numpy()
        for name, parameter in probe.named_parameters()
        if parameter.dtype == torch.float32 and parameter.numel()
    }
    whole: dict[bytes, tuple[str, bool]] = {}
    for name, array in parameters.items():
        whole.setdefault(_key(array), (name, False))
        if array.squeeze().ndim == 2:
            whole.setdefault(_key(array.squeeze().T), (name, True))
    origins = {}
    for name, value in graph.initializers.items():
        constant = constant_of(value)
        if constant is None or not is_float(value) or constant.size == 0:
            continue
        shape = tuple(constant.shape)
        if (found := whole.get(_key(constant))) is not None:
            origins[name] = Origin(found[0], shape, turned=found[1])
        elif (part := _part_of(constant, parameters)) is not None:
            origins[name] = part
    return origins


def adopt_constants(graph: ir.Graph, real: ir.Graph, origins: Mapping[str, Origin]) -> tuple[str, ...]:
    """Give `graph`, exported from a probe, those constants of the `real` one that no parameter stands for.

    The same place in both (what reads it, and where) tells which. Changes `graph`; returns the names of float
    constants of more than one element that thus stay as they are in training.
    """
    places = {
        (reader.outputs[0].name, index): value
        for value in real.initializers.values()
        for reader, index in value.uses()
    }
    fixed = []
    for name, value in graph.initializers.items():
        array = constant_of(value)
        if name in origins or array is None or not is_float(value):
            continue
        twin = next(
            (
                found
                for reader, index in value.uses()
                if (found := places.get((reader.outputs[0].name, index)))
            ),
            None,
        )
        replacement = constant_of(twin)
        if replacement is not None and replacement.shape == array.shape:
            value.const_value = ir.tensor(np.ascontiguousarray(replacement), name=name)
        if array.size > 1:
            fixed.append(name)
    return tuple(fixed)


def _key(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).data).digest() + array.size.to_bytes(
        8, "big"
    )


def _part_of(constant: NDArray[Any], parameters: Mapping[str, NDArray[Any]]) -> Origin | None:
    """Return the parameter of whose rows `constant` (or its transpose) consists, if there is one."""
    for turned in (False, True):
        if turned and constant.squeeze().ndim != 2:
            continue
        flat = np.ascontiguousarray(constant.squeeze().T if turned else constant).reshape(-1)
        for name, array in parameters.items():
            rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
            width = rows.shape[1]
            count = flat.size // width
            if flat.size % width or not 1 <= count < len(rows):
                continue
            if turned and (array.squeeze().ndim != 2 or width == 1):
                continue
            (starts,) = np.nonzero((rows == flat[:width]).all(axis=1))
            for start in starts.tolist():
                if np.array_equal(rows[start : start + count].reshape(-1), flat):
                    return Origin(name, tuple(constant.shape), turned, start, start + count)
    return None

"""How much of a layer each rank holds: of its weights, or of what it answers to real inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.compress.factorize.pairs import matrix_of
from exporter.compress.weight_layers import WeightLayer
from exporter.errors import CalibrationError
from exporter.model.source import SourceModel

MOMENT_SAMPLES = 128
"""So many calibration samples show what a layer answers; each gives one row for every position or token."""
RIDGE = 1e-3
"""Weight of the plain error beside the one on data, for directions that the samples do not show."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A layer's matrix `[out, in · kernel]` and the orthonormal directions of its output, strongest first.

    `energies` are squared: of the weights (squared singular values) or of the answers (mean squares along
    each direction). `basis` is `[out, directions]`, cut to what a smaller pair can use.
    """

    matrix: Tensor
    energies: Tensor
    basis: Tensor

    def error(self, rank: int) -> float:
        """Return the relative Frobenius error of the best approximation of this rank, 0..1."""
        total = float(self.energies.sum())
        return float((self.energies[rank:].sum() / total).sqrt()) if total else 0.0

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return `left` `[out, rank]` and `right` `[rank, in · kernel]`, whose product approximates the matrix.

        Projecting the outputs on their leading directions is the best that a rank can do (Eckart and Young
        1936; on data: Zhang et al. 2015, arXiv:1505.06798). The strength is shared between both factors, so
        that neither is hard to quantise.
        """
        basis = self.basis[:, :rank]
        strength = self.energies[:rank].clamp_min(float(self.energies[0]) * 1e-12 or 1.0).pow(0.25)
        return basis * strength, (basis.T @ self.matrix) / strength[:, None]


def spectrum_of_weights(layer: WeightLayer, directions: int) -> Spectrum:
    """Return the spectrum of the weight alone, by singular value decomposition."""
    matrix = matrix_of(layer)
    basis, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
    return Spectrum(matrix, singular.square(), basis[:, :directions].clone())


def spectrum_of_answers(layer: WeightLayer, moment: Tensor, directions: int) -> Spectrum:
    """Return the spectrum of the layer's answers, given their second moment `[out, out]`."""
    matrix = matrix_of(layer)
    moment = moment.to(torch.float64)
    gram = matrix @ matrix.T
    plain = float(gram.trace())
    if plain:
        moment = moment + RIDGE * float(moment.trace()) / plain * gram
    energies, basis = torch.linalg.eigh(moment)
    # A matrix has no more directions than its shorter side; what eigh adds beyond is rounding.
    count = min(matrix.shape)
    return Spectrum(
        matrix,
        energies.flip(0).clamp_min(0.0)[:count],
        basis.flip(1)[:, : min(directions, count)].clone(),
    )


def answer_moments(
    source: SourceModel, layers: Sequence[WeightLayer], samples: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, Tensor]:
    """Return, by layer, the mean of y·yᵀ over the first samples, `[out, out]` float32; y is its output less bias.

    `source.module` holds `layers`. A layer that is never called has no entry. Raises `CalibrationError` when
    the model answers a sample with values that are not finite.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def add(layer: WeightLayer, output: Tensor) -> None:
        answers = _rows(layer.module, output)
        sums[layer.name] = sums.get(layer.name, 0) + answers.T @ answers
        rows[layer.name] = rows.get(layer.name, 0) + len(answers)

    with _watched(layers, add):
        for sample in itertools.islice(samples, MOMENT_SAMPLES):
            source.forward(sample)
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise CalibrationError(
                f"layer {name} answers the calibration data with values that are not finite",
                fix="check data.calibration and preprocess for infinities and extreme values",
            )
    return {name: total / rows[name] for name, total in sums.items()}


def called_layers(source: SourceModel, layers: Sequence[WeightLayer]) -> frozenset[str]:
    """Return the names of the layers that a forward pass on `source.example` calls."""
    called: set[str] = set()
    with _watched(layers, lambda layer, _output: called.add(layer.name)):
        source.forward(source.example)
    return frozenset(called)


def _rows(module: nn.Module, output: Tensor) -> Tensor:
    """Return `[positions, out]` of an output, without the bias."""
    bias = module.bias
    output = output.detach().float()
    if not isinstance(module, nn.Linear):
        output = output.movedim(-len(module.kernel_size) - 1, -1)  # type: ignore[arg-type]
    if isinstance(bias, Tensor):
        output = output - bias.detach().float()
    return output.reshape(-1, output.shape[-1])


@contextmanager
def _watched(layers: Sequence[WeightLayer], see: Any) -> Iterator[None]:
    """Call `see(layer, output)` for each call of each layer as long as the context lasts."""

    def hook_of(layer: WeightLayer) -> Any:
        return lambda _module, _inputs, output: see(layer, output)

    handles = [layer.module.register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

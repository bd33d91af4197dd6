"""`method = "factorize"`: linear and convolution layers become two thinner ones each.

A layer of rank r is a projection to r channels and one back (for k×k convolutions: k×k to r, then 1×1), so
the exported file has fewer parameters and fewer multiply-accumulates, in every format.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from exporter.compress.base import StepResult, Workshop
from exporter.compress.factorize.budget import (
    Curve,
    cheapest_cuts,
    cuts_that_save,
    fewest_cuts,
    largest_rank,
    ranks_after,
    ranks_within_error,
    total_saved,
)
from exporter.compress.factorize.pairs import factorable_layers, matrix_of, replace_by_pairs, set_factors
from exporter.compress.factorize.spectrum import (
    Spectrum,
    answer_moments,
    called_layers,
    spectrum_of_answers,
    spectrum_of_weights,
)
from exporter.compress.retraining import recovery_of
from exporter.compress.weight_layers import WeightLayer
from exporter.errors import GateError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import FactorizeTable

_BYTES_PER_MB = 1e6


def factorize(source: SourceModel, table: FactorizeTable, workshop: Workshop) -> StepResult:
    """Return `source` with layers replaced by pairs of lower rank, as far as the table's budget asks.

    With calibration data a layer's error is that of its answers to it, which costs the model far less
    accuracy than the same rank cut by weights alone; without, it is that of its weights. Both are relative
    Frobenius norms. `remove_parameters` and `size_mb` spend rank where the least squared error is paid for
    each parameter saved.

    Raises `GateError` (14) when the budget cannot be met, naming the best that can be reached;
    `UnsupportedError` when no layer can be a pair; `RecipeError` for a skip pattern that names nothing;
    `CalibrationError` when training lacks data.
    """
    recovery = recovery_of(table, workshop)
    if source.module is None:
        raise UnsupportedError(
            "factorize changes torch modules, and this model came as ONNX", fix="give a factory"
        )
    options = _options(source, table, workshop)
    ranks = _ranks(source, table, workshop, options)
    changed = replace(source, module=options.applied(source.module, ranks))
    notes = _notes(options, ranks, table)
    details = options.described(source.module, ranks, table)
    if recovery is None or not ranks:
        return StepResult(changed, _edit(ranks), notes=notes, details=details)
    trained = copy.deepcopy(changed.module)
    if trained is None:
        raise TypeError("a factorised model has a torch module")
    record = workshop.train(trained, recovery, "factorize")
    return StepResult(
        source=replace(source, module=trained.cpu().eval()),
        edit=_edit(ranks),
        changed=changed,
        trainings=(record,),
        notes=notes,
        details=details,
    )


def replay(module: nn.Module, edit: Mapping[str, Any], source: SourceModel) -> nn.Module:  # noqa: ARG001
    """Return `module` with a pair of the edit's rank in the place of each factorised layer; weights are unset."""
    replace_by_pairs(module, {str(name): int(rank) for name, rank in edit["ranks"].items()})
    return module


def _edit(ranks: Mapping[str, int]) -> dict[str, Any]:
    return {"kind": "factorize", "ranks": dict(ranks)}


# --- what each layer may become --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Options:
    """Spectra and curves of the layers that may be split, and why the others may not."""

    spectra: Mapping[str, Spectrum]
    curves: tuple[Curve, ...]
    skipped: Mapping[str, str]
    by_answers: bool

    def applied(self, module: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
        """Return a copy of `module` with its layers at `ranks`."""
        split = copy.deepcopy(module)
        for name, pair in replace_by_pairs(split, ranks).items():
            left, right = self.spectra[name].factors(ranks[name])
            set_factors(pair, left, right)
        return split.eval()

    def described(self, module: nn.Module, ranks: Mapping[str, int], table: FactorizeTable) -> dict[str, Any]:
        """Return what the report says: ranks and errors by layer, what stayed whole and why."""
        layers = {}
        for curve in self.curves:
            if curve.name in ranks:
                rank, spectrum = ranks[curve.name], self.spectra[curve.name]
                layers[curve.name] = {
                    "rank": rank,
                    "full_rank": min(spectrum.matrix.shape),
                    "relative_error": spectrum.error(rank),
                    "parameters": [curve.whole, curve.parameters(rank)],
                }
        kept = {
            curve.name: _why_whole(curve, table.max_error) for curve in self.curves if curve.name not in ranks
        }
        return {
            "layers": layers,
            "error_of": "answers" if self.by_answers else "weights",
            "parameters_removed": total_saved(self.curves, ranks) / _parameter_count(module),
            "skipped": {**self.skipped, **kept},
        }


def _options(source: SourceModel, table: FactorizeTable, workshop: Workshop) -> _Options:
    watched = replace(source, module=copy.deepcopy(source.module).eval())  # type: ignore[union-attr]
    layers, skipped = factorable_layers(watched.module, table.skip)  # type: ignore[arg-type]
    layers, skipped = _worthwhile(layers, skipped, table.round_to)
    by_answers = workshop.calibration is not None and len(workshop.calibration) > 0
    moments = answer_moments(watched, layers, workshop.calibration) if by_answers else {}  # type: ignore[arg-type]
    called = frozenset(moments) if by_answers else called_layers(watched, layers)
    spectra: dict[str, Spectrum] = {}
    curves: list[Curve] = []
    with workshop.progress.step("decomposing layers", len(layers)) as advance:
        for number, layer in enumerate(layers, start=1):
            if layer.name not in called:
                skipped[layer.name] = "the model does not call it; if its weight is used, then in another way"
                continue
            rows, columns = matrix_of(layer).shape
            top = largest_rank(rows, columns, table.round_to)
            spectrum = (
                spectrum_of_answers(layer, moments.pop(layer.name), top)
                if by_answers
                else spectrum_of_weights(layer, top)
            )
            ranks = tuple(range(top, 0, -table.round_to))
            errors = tuple(spectrum.error(rank) for rank in ranks)
            spectra[layer.name] = spectrum
            curves.append(Curve(layer.name, rows * columns, rows + columns, ranks, errors))
            advance(number)
    if not curves:
        first = next((f"{name}: {reason}" for name, reason in skipped.items()), "it has none with weights")
        raise UnsupportedError(
            f"no layer of this model can be factorised ({first})",
            fix="remove the factorize step, loosen skip, or lower round_to",
        )
    return _Options(spectra, tuple(curves), skipped, by_answers)


def _worthwhile(
    layers: Sequence[WeightLayer], skipped: Mapping[str, str], round_to: int
) -> tuple[tuple[WeightLayer, ...], dict[str, str]]:
    """Return the layers of which two factors can be smaller, and the reasons with those of the others."""
    worth: list[WeightLayer] = []
    reasons = dict(skipped)
    for layer in layers:
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        if largest_rank(rows, columns, round_to):
            worth.append(layer)
        else:
            reasons[layer.name] = (
                f"two factors of rank {round_to} hold {round_to * (rows + columns)} weights, it holds {rows * columns}"
            )
    return tuple(worth), reasons


def _why_whole(curve: Curve, max_error: float | None) -> str:
    if max_error is None:
        return "within the budget, other layers lose less for what they save"
    return f"at rank {curve.ranks[0]}, the largest that is smaller, its error is {curve.errors[0]:.3f}"


# --- budgets ---------------------------------------------------------------------------------------------


def _ranks(
    source: SourceModel, table: FactorizeTable, workshop: Workshop, options: _Options
) -> dict[str, int]:
    if table.max_error is not None:
        return _within_error(table.max_error, options)
    if table.remove_parameters is not None:
        return _removing(table.remove_parameters, source, options)
    return _within_size(table.size_mb or 0.0, source, workshop, options)


def _within_error(max_error: float, options: _Options) -> dict[str, int]:
    ranks = ranks_within_error(options.curves, max_error)
    if ranks:
        return ranks
    best = min(options.curves, key=lambda curve: (curve.errors[0], curve.name))
    raise GateError(
        f"max_error = {max_error}: no layer gets smaller within it; the least is {best.errors[0]:.3f}, "
        f"of {best.name} at rank {best.ranks[0]}",
        fix=f"allow at least max_error = {_above(best.errors[0])}, or leave the step out",
        details={"best": best.errors[0], "layer": best.name, "rank": best.ranks[0]},
    )


def _above(value: float) -> str:
    """Return `value` in three decimals, rounded up."""
    return f"{value + 0.0005:.3f}"


def _removing(share: float, source: SourceModel, options: _Options) -> dict[str, int]:
    cuts = cheapest_cuts(options.curves)
    total = _parameter_count(source.module)
    count = cuts_that_save(cuts, share * total)
    if count is None:
        best = sum(cut.saved for cut in cuts) / total
        raise GateError(
            f"remove_parameters = {share}: with every layer at its lowest rank {best:.3f} of the parameters go",
            fix=f"ask for at most {best - 0.0005:.3f}, lower round_to, or loosen skip",
            details={"best": best},
        )
    return ranks_after(cuts[:count])


def _within_size(
    size_mb: float, source: SourceModel, workshop: Workshop, options: _Options
) -> dict[str, int]:
    cuts = cheapest_cuts(options.curves)
    sizes: dict[int, float] = {}

    def size_of(count: int) -> float:
        module = options.applied(source.module, ranks_after(cuts[:count]))  # type: ignore[arg-type]
        sizes[count] = workshop.measure(replace(source, module=module)).size_bytes / _BYTES_PER_MB
        return sizes[count]

    count = fewest_cuts(cuts, size_of, size_mb)
    if count is None:
        best = min(sizes.values())
        raise GateError(
            f"size_mb = {size_mb}: with every layer at its lowest rank the file has {best:.3f} MB",
            fix=f"ask for at least {_above(best)}, lower round_to, loosen skip, or prune first",
            details={"best": best},
        )
    return ranks_after(cuts[:count])


def _parameter_count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def _notes(options: _Options, ranks: Mapping[str, int], table: FactorizeTable) -> tuple[str, ...]:
    if not ranks:
        return (f"the model is already within size_mb = {table.size_mb}: nothing was factorised",)
    if options.by_answers:
        return (
            "ranks were cut where the layers' answers to the calibration data lose least, not their weights",
        )
    return (
        "ranks were cut by weights alone; with [data] calibration they are cut by what the layers answer to it, "
        "which keeps more accuracy at the same size",
    )

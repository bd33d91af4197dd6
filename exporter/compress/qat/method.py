"""Quantisation-aware training: fine-tune with the rounding of the exported integer graph in the forward pass.

The forward pass *is* the exported graph: the model is exported, the graph is run in torch on the module's own
parameters (`exporter.torch_graph`), and values and weights are rounded exactly where and how the quantiser will
round them (`qat_graph`, `qat_rounding`). What training reached is therefore what the file reaches. Method:
Jacob et al. 2018, section 3; scales of activations as in Esser et al. 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from exporter.compress.base import StepResult, Workshop
from exporter.compress.qat.fold import fold_norms, foldable_norms
from exporter.compress.qat.graph import (
    Imitation,
    imitate_static,
    imitate_weight_only,
    knows,
    owner_of,
)
from exporter.compress.qat.match import Origin, adopt_constants, find_origins, make_probe
from exporter.errors import CalibrationError, InternalError, RecipeError, UnsupportedError
from exporter.model.graph import matches
from exporter.model.onnx_write import save_onnx
from exporter.model.source import SourceModel
from exporter.quantize.regions import Regions, decide_regions
from exporter.recipe.compression import QatTable, training_of
from exporter.schemes import Method, Scheme
from exporter.stages.measure import export
from exporter.system.processes import rank


class FakeQuantized(nn.Module):
    """A module that computes what its exported integer graph will compute, on its own parameters.

    `model` is the float module that is trained; it is called once, here, to see what its result looks like on
    `example`: a tensor, a tuple, a dict. Takes the model's inputs and returns its kind of result.
    """

    def __init__(
        self,
        model: nn.Module,
        origins: Mapping[str, Origin],
        imitation: Imitation,
        example: Sequence[Tensor],
    ) -> None:
        super().__init__()
        self.model = model
        self.graph = imitation.graph
        self._origins = dict(origins)
        with torch.no_grad():
            leaves, self._form = pytree.tree_flatten(model(*example))
        self._constant_leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._tensor_places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the integer graph gives for `inputs`, in the order of the model's arguments."""
        parameters = dict(self.model.named_parameters())
        constants = {
            name: origin.derive(parameters[origin.parameter]) for name, origin in self._origins.items()
        }
        leaves = list(self._constant_leaves)
        for place, output in zip(self._tensor_places, self.graph(*inputs, constants=constants), strict=True):
            leaves[place] = output
        return pytree.tree_unflatten(leaves, self._form)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready for quantisation-aware training.

    `trainable` is what trains; `source` the float model inside it (norms folded), the same tensors;
    `regions` is `None` for weight-only schemes; `fixed` are float constants that no parameter stands for, and
    `resting` the parameters that enter the graph only through such constants: they are frozen while it trains.
    """

    trainable: FakeQuantized
    source: SourceModel
    imitation: Imitation
    regions: Regions | None
    folded: tuple[tuple[str, str], ...]
    fixed: tuple[str, ...]
    resting: tuple[str, ...]

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the range of every activation grid as it is now, by value name in the ONNX graph."""
        return {name: grid.grid.range for name, grid in self.imitation.grids.items()}


def qat(source: SourceModel, table: QatTable, workshop: Workshop) -> StepResult:
    """Return `source` trained under the rounding of a scheme, with the activation ranges that it settled.

    Raises `UnsupportedError` for a model without torch module, for operators that cannot be run in torch, and
    when the scheme would quantise nothing; `RecipeError` for a scheme that training cannot imitate;
    `CalibrationError` without data to train or, for static schemes, to calibrate on.
    """
    scheme = Scheme.parse(table.scheme or workshop.recipe.quantize.scheme)
    training = training_of(table, workshop.recipe.training)
    if not knows(scheme):
        raise RecipeError(
            f"qat cannot imitate {scheme}",
            fix="use static_wi8_ai8, static_wi8_ai8_u, weight_only_wi8 or weight_only_wi4_b32 (b64, b128)",
        )
    if workshop.training is None or training is None:
        raise CalibrationError(
            "step qat trains, and the recipe has no training data", fix="add [data] training = {…}"
        )
    prepared = prepare(source, scheme, learned=table.learn_ranges, workshop=workshop)
    record = workshop.train(prepared.trainable, training, "qat")
    _let_train(prepared.trainable.model, prepared.resting, trains=True)
    trained = replace(prepared.source, ranges=prepared.ranges())
    _require_same_graph(trained, prepared, workshop)
    return StepResult(
        source=trained,
        edit={"kind": "qat", "folded": [list(pair) for pair in prepared.folded]},
        trainings=(record,),
        notes=_notes(prepared),
        details=_details(scheme, table, prepared),
    )


def replay(module: nn.Module, edit: Mapping[str, Any], source: SourceModel) -> nn.Module:  # noqa: ARG001
    """Return `module` with the batch norms folded that `qat` folded; the trained weights fit it."""
    folded = copy.deepcopy(module).eval()
    fold_norms(folded, edit["folded"])
    return folded


def prepare(source: SourceModel, scheme: Scheme, *, learned: bool, workshop: Workshop) -> Prepared:
    """Return a copy of `source` that computes as `scheme` will; untrained, it is the post-training result.

    Activation ranges come from the calibration data by the recipe's rule, and are parameters if `learned`.
    Raises as `qat` does.
    """
    if source.module is None:
        raise UnsupportedError(
            f"model {source.name} came as ONNX, and qat trains torch modules",
            fix="give the model as a factory with weights, or remove the qat step",
        )
    module = copy.deepcopy(source.module).cpu().eval()
    folded = foldable_norms(replace(source, module=module))
    fold_norms(module, folded)
    ready = replace(source, module=module, ranges={})
    probe = make_probe(module)
    model = _exported(replace(ready, module=probe), workshop)
    _load_constants(model)
    origins = find_origins(model.graph, probe)
    fixed = adopt_constants(model.graph, _exported(ready, workshop).graph, origins)
    keep = workshop.recipe.quantize.keep
    _check_keep(model, keep)
    regions: Regions | None = None
    if scheme.method is Method.STATIC:
        regions = decide_regions(model, keep)
        ranges = _calibrated(model, regions, module, origins, workshop)
        imitation = imitate_static(
            model, regions, ranges, unsigned=scheme.unsigned_activations, keep=keep, learned=learned
        )
    else:
        imitation = imitate_weight_only(model, scheme, keep)
    if not imitation.grids and not imitation.rounded_weights:
        raise UnsupportedError(
            f"{scheme} quantises nothing in model {source.name}: there is nothing to train for",
            fix="choose another scheme, or remove the qat step",
        )
    known = {origin.parameter for origin in origins.values()}
    resting = tuple(n for n, p in module.named_parameters() if p.requires_grad and n not in known)
    _let_train(module, resting, trains=False)
    example = [torch.from_numpy(source.example[spec.name]) for spec in source.inputs]
    return Prepared(
        FakeQuantized(module, origins, imitation, example),
        ready,
        imitation,
        regions,
        tuple(folded),
        fixed,
        resting,
    )


def _exported(source: SourceModel, workshop: Workshop) -> ir.Model:
    """Return the tidy float graph that `source` is exported to; its constants lie in a file of the step's folder."""
    return ir.load(export(source, workshop.folder / f"exported-{rank()}" / "float32.onnx"))


def _let_train(module: nn.Module, names: Sequence[str], *, trains: bool) -> None:
    parameters = dict(module.named_parameters())
    for name in names:
        parameters[name].requires_grad_(trains)


def _load_constants(model: ir.Model) -> None:
    """Read constants into memory: the file they lie in is about to be written anew."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)


def _check_keep(model: ir.Model, keep: tuple[str, ...]) -> None:
    names = [node.name or "" for node in model.graph]
    for pattern in keep:
        if not any(matches(name, (pattern,)) for name in names):
            raise RecipeError(
                f"quantize.keep: {pattern!r} matches no operator",
                fix=f"names look like {', '.join(names[:3])}",
            )


def _calibrated(
    model: ir.Model,
    regions: Regions,
    module: nn.Module,
    origins: Mapping[str, Origin],
    workshop: Workshop,
) -> dict[str, tuple[float, float]]:
    """Return the range of every grid's owner over the calibration data, seen with the module's own weights."""
    from calibration.collect import collect

    names = list(dict.fromkeys(owner_of(name, regions) for name in regions.grids))
    if not names:
        return {}
    if workshop.calibration is None:
        raise CalibrationError(
            "step qat needs calibration data for a static scheme", fix="add [data] calibration to the recipe"
        )
    real = model.clone()
    parameters = dict(module.named_parameters())
    for name, origin in origins.items():
        array = origin.derive(parameters[origin.parameter]).detach().contiguous().numpy()
        real.graph.initializers[name].const_value = ir.tensor(array, name=name)
    path = workshop.folder / "calibrated.onnx"
    files = save_onnx(real, path)
    with workshop.progress.step("calibrating for qat", len(workshop.calibration)) as advance:
        statistics = collect(path, names, workshop.calibration, progress=lambda done, _total: advance(done))
    for file in files:
        file.unlink()
    found = {name: statistics.range_of(name, workshop.recipe.quantize.rule) for name in names}
    return {name: (range_.low, range_.high) for name, range_ in found.items()}


def _require_same_graph(trained: SourceModel, prepared: Prepared, workshop: Workshop) -> None:
    """Make sure that the trained ranges will be found: the exporter looks them up by name."""
    if prepared.regions is None:
        return
    regions = decide_regions(_exported(trained, workshop), workshop.recipe.quantize.keep)
    lost = sorted(set(prepared.regions.grids) ^ set(regions.grids))
    if lost:
        raise InternalError(
            f"model {trained.name} exports to another graph after training: {', '.join(lost[:3])}",
            fix="report this model as a bug",
        )


def _notes(prepared: Prepared) -> tuple[str, ...]:
    if not prepared.resting:
        return ()
    return (
        f"{len(prepared.resting)} parameters were not trained, because the exported graph holds only numbers "
        f"computed from them: {', '.join(prepared.resting[:5])}",
    )


def _details(scheme: Scheme, table: QatTable, prepared: Prepared) -> dict[str, Any]:
    grids = prepared.imitation.grids
    ratios = [float(grid.scale.detach() / grid.initial) for grid in grids.values()]
    return {
        "scheme": str(scheme),
        "learn_ranges": table.learn_ranges,
        "folded_norms": len(prepared.folded),
        "activation_grids": len(grids),
        "rounded_weights": len(prepared.imitation.rounded_weights),
        "largest_range_change": max((abs(ratio - 1) for ratio in ratios), default=0.0),
        "fixed_constants": list(prepared.fixed),
        "untrained_parameters": list(prepared.resting),
    }

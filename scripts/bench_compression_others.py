"""What a user would do without this tool: a tutorial's masks and dynamic int8, and Torch-Pruning by itself.

Each is given the recovery training that ours get, and its files are written by `torch.onnx.export` alone.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from exporter.model.source import SourceModel
from exporter.progress import Silence
from exporter.recipe.compression import SparsifyTable, training_of
from exporter.recipe.recipe import Recipe
from exporter.stages.data import BuildData
from exporter.training.fit import require_data
from exporter.training.job import TrainingJob
from exporter.training.loop import train

MASKED_SHARE = 0.8
KEPT_MACS = 0.5


def tutorial(source: SourceModel, data: BuildData, recipe: Recipe, work: Path) -> dict[str, Any]:
    """Mask 80 % of the weights, train, make the masks permanent, then quantise dynamically and save."""
    changed = _export(_unmasked(_masked(_module(source))), source, work / "changed.onnx")
    module = _masked(_module(source))
    _recover(module, data, recipe, source, work)
    module = _unmasked(module)
    after = _export(module, source, work / "after.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what tutorials call
        dynamic = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8
        )
    torch.save(module.state_dict(), work / "float.pt")
    torch.save(dynamic.state_dict(), work / "dynamic.pt")
    return {
        "onnx": {"changed": changed, "after": after},
        "dynamic_pt_bytes": (work / "dynamic.pt").stat().st_size,
        "float_pt_bytes": (work / "float.pt").stat().st_size,
        "dynamic_score": _score(dynamic, source, data),
        "dynamic_onnx": _attempt(dynamic, source, work / "dynamic.onnx"),
    }


def _masked(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose smallest weights are masked."""
    masked = copy.deepcopy(module)
    layers = [layer for layer in masked.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=MASKED_SHARE
    )
    return masked


def _unmasked(module: nn.Module) -> nn.Module:
    """Return `module` with its masks made permanent."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    return module.eval()


def torch_pruning(
    source: SourceModel, data: BuildData, recipe: Recipe, work: Path, *, round_to: int | None = None
) -> dict[str, Any]:
    """Prune by Torch-Pruning's defaults with the least ratio that leaves half the MACs, then train."""
    import torch_pruning as tp

    original = _module(source)
    example = tuple(torch.from_numpy(source.example[spec.name]) for spec in source.inputs)
    whole, _ = tp.utils.count_ops_and_params(original, example)
    module = original
    ratio = 0.0
    for percent in range(5, 100, 5):
        ratio = percent / 100
        module = copy.deepcopy(original)
        last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
        tp.pruner.BasePruner(
            module,
            example,
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[last],
            round_to=round_to,
        ).step()
        with torch.no_grad():
            module(*example)
        macs, _ = tp.utils.count_ops_and_params(module, example)
        if macs <= KEPT_MACS * whole:
            break
    changed = _export(module, source, work / "changed.onnx")
    _recover(module, data, recipe, source, work)
    return {
        "onnx": {"changed": changed, "after": _export(module, source, work / "after.onnx")},
        "ratio": ratio,
        "channels": sorted(
            {layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)}
        ),
    }


def _module(source: SourceModel) -> nn.Module:
    if source.module is None:
        raise TypeError("the digits models are torch modules")
    return source.module


def _recover(module: nn.Module, data: BuildData, recipe: Recipe, source: SourceModel, work: Path) -> None:
    table = training_of(SparsifyTable(sparsity=MASKED_SHARE), recipe.training)
    if table is None:
        raise TypeError("the recipe trains")
    teacher = copy.deepcopy(_module(source))
    job = TrainingJob(module, require_data(data.training), table, teacher, recipe_folder=recipe.folder)
    train(job, work / "training", Silence())


def _export(module: nn.Module, source: SourceModel, path: Path) -> Path:
    """Write the float ONNX as `torch.onnx.export` does by itself, with the names that judging needs."""
    example = tuple(torch.from_numpy(source.example[spec.name]) for spec in source.inputs)
    program = torch.onnx.export(
        module.eval(),
        example,
        input_names=[spec.name for spec in source.inputs],
        dynamo=True,
        external_data=False,
    )
    if program is None:
        raise RuntimeError("torch gave no ONNX program")
    program.save(str(path))
    return path


def _attempt(module: nn.Module, source: SourceModel, path: Path) -> str:
    """Return what exporting the dynamically quantised module comes to: its bytes, or the first line of the error."""
    try:
        return f"{_export(module, source, path).stat().st_size} bytes"
    except Exception as error:  # noqa: BLE001 - whatever a user would meet is the result
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        said = (str(root).strip().splitlines() or [""])[0][:160]
        return f"{type(error).__name__}, because of {type(root).__name__}: {said}"


def _score(module: nn.Module, source: SourceModel, data: BuildData) -> float | None:
    if data.metric is None or data.labels is None:
        return None
    outputs = []
    with torch.no_grad():
        for sample in data.samples:
            inputs = [torch.from_numpy(sample[spec.name]) for spec in source.inputs]
            outputs.append({"scores": module(*inputs).numpy()})
    return data.metric(outputs, data.labels)

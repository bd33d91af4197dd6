"""From an exported torch program to a float `.tflite` whose names a person can read.

litert-torch names tensors after Python classes; here they are named after the model's own modules
(`blocks.3.gate.excite/conv_2d`), which is also what `keep` patterns match. Runs in a child process only:
it imports torch and litert-torch. Knows nothing of quantisation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import _pytree as pytree

from exporter.artifacts import TensorSpec
from exporter.errors import InputError, UnsupportedError
from exporter.formats.program import check_weights
from exporter.formats.tflite.graph import canonical_bytes, name_tensors, read_model, set_signature
from exporter.system import files

_UNFLATTEN_ERRORS = (RuntimeError, ValueError, AssertionError, KeyError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class FloatModel:
    """The float `.tflite` of one program: its path, and whether an earlier call had already made it."""

    path: Path
    reused: bool


def float_model(
    program: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], workdir: Path
) -> FloatModel:
    """Return the float32 `.tflite` of `program`, made once per `workdir` and reused while its digest holds.

    `inputs` and `outputs` carry fixed shapes; the SignatureDef of the file has exactly their names, in
    their order. Integer inputs of 64 bits become int32 (LiteRT's converter narrows them).

    Raises `InputError` when the program does not fit the specs, `GateError` for a non-finite weight,
    `UnsupportedError` when litert-torch has no lowering for an operator.
    """
    key = hashlib.sha256(f"{files.digest(program)}|{inputs}|{outputs}".encode()).hexdigest()[:16]
    path, seal = workdir / f"float32-{key}.tflite", workdir / f"float32-{key}.json"
    if _is_sealed(path, seal):
        return FloatModel(path, reused=True)
    seal.unlink(missing_ok=True)
    files.write_bytes(path, _convert(program, inputs, outputs))
    files.write_json(seal, {"sha256": files.digest(path)})
    return FloatModel(path, reused=False)


def _is_sealed(path: Path, seal: Path) -> bool:
    try:
        recorded = json.loads(seal.read_text(encoding="utf-8"))
        return bool(recorded["sha256"] == files.digest(path))
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return False


def _convert(program: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    import litert_torch

    exported = torch.export.load(program)
    check_weights(exported, program)
    module = NamedModel(_with_module_paths(exported), _input_tree(exported, inputs, program), len(outputs))
    samples = {
        key: torch.zeros([int(axis) for axis in spec.shape], dtype=getattr(torch, spec.dtype))
        for key, spec in zip(_keys("input", len(inputs)), inputs, strict=True)
    }
    try:
        converted = litert_torch.convert(module.eval(), sample_kwargs=samples).model_content()
    except (NotImplementedError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
        raise UnsupportedError(
            f"litert-torch cannot convert {program.name}: {line.strip()[:300]}",
            fix="rewrite that operator in the model, or leave the .tflite artifacts out of the recipe",
        ) from error
    model = read_model(bytes(converted))
    set_signature(
        model,
        dict(zip(_keys("input", len(inputs)), (spec.name for spec in inputs), strict=True)),
        dict(zip(_keys("output", len(outputs)), (spec.name for spec in outputs), strict=True)),
    )
    name_tensors(model)
    return canonical_bytes(model)


class NamedModel(torch.nn.Module):
    """The model behind keyword inputs and a dict of outputs, from which the converter takes its signature."""

    def __init__(self, model: torch.nn.Module, tree: pytree.TreeSpec, output_count: int) -> None:
        super().__init__()
        self.model = model
        self._tree = tree
        self._output_count = output_count

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `{"output_00": …}` for `{"input_00": …}`; both in the order of the model's specs."""
        leaves = [tensors[key] for key in _keys("input", len(tensors))]
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        results = [leaf for leaf in pytree.tree_leaves(self.model(*args, **kwargs)) if leaf is not None]
        if len(results) != self._output_count:
            raise InputError(
                f"the program gives {len(results)} outputs where the model's specs name {self._output_count}",
                fix="export the program from the same module that the specs describe",
            )
        return dict(zip(_keys("output", self._output_count), results, strict=True))


def _keys(kind: str, count: int) -> list[str]:
    # Two digits keep the order even where a tool sorts the keys.
    return [f"{kind}_{index:02d}" for index in range(count)]


def _with_module_paths(exported: torch.export.ExportedProgram) -> torch.nn.Module:
    """Return the program as a tree of modules, so that the converter sees each operator's module path."""
    try:
        unflattened: torch.nn.Module = torch.export.unflatten(exported)
    except _UNFLATTEN_ERRORS:
        # Programs that call one module in incompatible ways have no tree; they convert without paths.
        return exported.module()
    return unflattened


def _input_tree(
    exported: torch.export.ExportedProgram, inputs: Sequence[TensorSpec], program: Path
) -> pytree.TreeSpec:
    tree: pytree.TreeSpec | None = exported.call_spec.in_spec
    if tree is None or tree.num_leaves != len(inputs):
        found = 0 if tree is None else tree.num_leaves
        raise InputError(
            f"{program.name} takes {found} inputs where the model's specs name {len(inputs)}",
            fix="export the program from the same module that the specs describe",
        )
    return tree

"""Draft a recipe from what a model says of itself.

What the model states is filled in; what it cannot know (data, metric, sizes of a factory's inputs) is a
placeholder that names itself, never a guess that could pass for a fact.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exporter.artifacts import TensorSpec
from exporter.bundle.names import NAME_RULE
from exporter.errors import InputError, InternalError, UnsupportedError
from exporter.recipe.recipe import Dtype, InputTable, ModelTable, Recipe
from exporter.system.files import require_file

if TYPE_CHECKING:
    import torch

FILL_IN = "FILL IN"
_DATA_POINT = "[data]: where calibration data is; without it only float and dynamic schemes can be made"
_PLACEHOLDER_SHAPE = ("batch", 3, 224, 224)
_AXIS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe's text, and sentences on what its author still has to say."""

    text: str
    open_points: tuple[str, ...]


def draft_recipe(model: str, folder: Path, targets: Sequence[str], *, log: Path) -> Draft:
    """Return a commented recipe for `model`: a path to an `.onnx` file, or `file.py:callable`.

    Paths in the draft are relative to `folder`, where the recipe will live. A factory is called once, as a
    build would call it, to read the signature of its module's `forward`; `log` receives what it prints.

    Raises `InputError` for a model that is missing, broken or raises, `UnsupportedError` for other kinds.
    """
    where, colon, attribute = model.rpartition(":")
    is_file = Path(model).is_file()  # a file may be called "net:a.onnx"
    if colon and not is_file and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", attribute):
        return _draft_for_factory(where, attribute, folder, targets, log)
    path = Path(model)
    if path.suffix.lower() == ".onnx":
        return _draft_for_onnx(path, folder, targets)
    if path.suffix == ".py":
        raise UnsupportedError(
            f"{path} is a Python file without the name of a callable",
            fix=f"write {path}:build, where build() returns the torch module",
        )
    raise UnsupportedError(
        f"{path} does not say what its inputs are",
        fix='give an .onnx file, or "file.py:callable" that returns the module',
    )


def _draft_for_onnx(path: Path, folder: Path, targets: Sequence[str]) -> Draft:
    from exporter.model.onnx_read import read_onnx, tensor_specs

    inputs, _ = tensor_specs(read_onnx(path))
    _require_expressible(path, inputs)
    unsized = _unsized_axes(inputs)
    lines = [
        f"path    = {_quoted(_relative(path, folder))}",
        "",
        "# What the file says of its inputs. A name in place of a number is a dynamic axis.",
        *_input_tables(inputs),
    ]
    points = [_DATA_POINT]
    if unsized:
        sizes = ", ".join(f"{axis} = 128" for axis in unsized)
        lines += [
            "",
            f"[model.axes]  # {FILL_IN}: sizes for formats of fixed shape; a leading axis is 1",
            *(f"{axis} = 128" for axis in unsized),
        ]
        points.append(f"[model.axes]: {sizes} is a placeholder; write the sizes your app uses")
    return Draft(_recipe_text(path.stem, lines, targets), tuple(points))


def _require_expressible(path: Path, inputs: Sequence[TensorSpec]) -> None:
    """Refuse what no recipe can say, rather than write a recipe that cannot be read back."""
    for spec in inputs:
        if spec.dtype not in get_args(Dtype):
            raise UnsupportedError(
                f"{path}: input {spec.name!r} is {spec.dtype}, which no recipe can name",
                fix=f"export the model with inputs of {', '.join(get_args(Dtype))}",
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", spec.name):
            raise UnsupportedError(
                f"{path}: input name {spec.name!r} holds characters that mobile code cannot name",
                fix="rename the input (letters, digits, _ and .) and export the model again",
            )


def _unsized_axes(inputs: Sequence[TensorSpec]) -> list[str]:
    leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    named = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    return sorted(_axis_name(axis) for axis in named - leading)


def _draft_for_factory(where: str, attribute: str, folder: Path, targets: Sequence[str], log: Path) -> Draft:
    is_file = where.endswith(".py")
    if is_file:
        require_file(Path(where), what="the factory's file")
    reference = f"{_relative(Path(where), folder) if is_file else where}:{attribute}"
    module = _build_module(reference, folder, log)
    signature, arguments = _forward_arguments(module)
    inputs = [TensorSpec(name, "float32", _PLACEHOLDER_SHAPE) for name in arguments]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    lines = [
        f"factory = {_quoted(reference)}  # returns {type(module).__name__} with {parameters} parameters",
        f'# weights = "weights.safetensors"  # {FILL_IN}, unless the factory loads the weights itself',
        "",
        f"# {FILL_IN}: forward{_comment(signature)} gives only names.",
        "# dtype and shape below are placeholders.",
        '# A name in place of a number ("batch") is a dynamic axis.',
        *_input_tables(inputs),
    ]
    points = (
        f"[[model.inputs]]: dtype and shape of {', '.join(arguments)} are placeholders, since "
        f"forward{signature} gives names only",
        "weights: a .safetensors file, unless the factory loads them itself",
        _DATA_POINT,
    )
    return Draft(
        _recipe_text(Path(where).stem if is_file else where.rpartition(".")[2], lines, targets), points
    )


def _build_module(reference: str, folder: Path, log: Path) -> torch.nn.Module:
    """Return the module that the factory returns, called exactly as a build would call it."""
    from exporter.recipe.planning import Origin, Plan
    from exporter.stages.load import load

    unknown = InputTable(name="unknown", shape=(1,))
    table = ModelTable(name="draft", version="0.1.0", factory=reference, inputs=(unknown,))
    recipe = Recipe(model=table, folder=folder.resolve())
    plan = Plan(recipe, Origin.FACTORY, False, {}, {}, (), ())
    module = load(plan, log=log).module
    if module is None:
        raise InternalError(f"factory {reference} loaded as something else", fix="report this as a bug")
    return module


def _forward_arguments(module: torch.nn.Module) -> tuple[str, list[str]]:
    """Return the signature of `forward` and the names of its required arguments."""
    signature = inspect.signature(module.forward)
    arguments = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ]
    if not arguments:
        raise InputError(
            f"forward{signature} of {type(module).__name__} has no required argument to make an input of",
            fix="wrap the model in a module whose forward names its tensors",
        )
    return str(signature), arguments


def _recipe_text(stem: str, model_lines: Sequence[str], targets: Sequence[str]) -> str:
    tables = "\n\n".join(f"[targets.{name}]" for name in targets)
    model = "\n".join(model_lines)
    return f"""\
# Recipe for edge-export build. Drafted by edge-export init: look for {FILL_IN}.
# Paths are relative to this file; edge-export schema prints every key.

[model]
name    = {_quoted(_portable_name(stem))}
version = "0.1.0"  # SemVer
{model}

[data]
# {FILL_IN}: 100 to 300 samples like those the app will feed, with one array per input, named like it:
# calibration = {{ source = "npz", path = "calibration.npz", samples = 256 }}
# To measure what is lost, labelled samples that training has not seen; without labels the artifacts are
# compared with the float model:
# evaluation  = {{ source = "npz", path = "evaluation.npz", labels = "label" }}
# metric      = "top1"

[quantize]
scheme = "static_wi8_ai8"  # needs calibration; "dynamic_wi8_ai8" does not
# max_drop = 0.5           # points of the metric that may be lost
# keep = ["head.*"]        # stays float

[gates]
min_sqnr_db = 15  # every artifact must be at least this close to the float model, or nothing is published

# One table per target; an empty one takes the target's default artifacts.
{tables}
"""


def _input_tables(inputs: Sequence[TensorSpec]) -> list[str]:
    lines: list[str] = []
    for spec in inputs:
        axes = (str(axis) if isinstance(axis, int) else _quoted(_axis_name(axis)) for axis in spec.shape)
        lines += [
            "[[model.inputs]]",
            f"name  = {_quoted(spec.name)}",
            f"dtype = {_quoted(spec.dtype)}",
            f"shape = [{', '.join(axes)}]",
        ]
    return lines


def _axis_name(axis: str) -> str:
    """Return `axis` as a recipe can name it; exporters write expressions such as `2*seq + 1`."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", axis).strip("_")
    return name if _AXIS_NAME.fullmatch(name) else f"axis_{name}".rstrip("_")


def _portable_name(stem: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
    name = re.sub(r"\.{2,}", ".", name)[:100]
    return name if re.fullmatch(NAME_RULE, name) else "model"


def _comment(text: str) -> str:
    """Return `text` as TOML allows it in a comment: one line without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _quoted(text: str) -> str:
    """Return `text` as a TOML basic string; JSON's escapes are a subset of TOML's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _relative(path: Path, folder: Path) -> str:
    """Return `path` as seen from `folder`, upwards too when both are below one folder other than the root."""
    absolute, base = path.resolve(), folder.resolve()
    shared = os.path.commonpath([absolute, base])
    return os.path.relpath(absolute, base) if shared != os.sep else str(absolute)

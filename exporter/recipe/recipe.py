"""The recipe: the one TOML file that describes a build, read strictly into frozen models.

Nothing is loaded and no path is opened here besides the recipe itself and its list of layers to keep. An unknown
key is an error that gives its full path and the names nearby; paths are relative to the recipe's folder.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from exporter.artifacts import TensorSpec
from exporter.bundle.names import NAME_RULE, VERSION_RULE
from exporter.errors import RecipeError
from exporter.recipe.compression import METHODS, CompressTable, TrainingTable
from exporter.recipe.tune import ArchitectureTable, ConstraintsTable, TuneTable
from exporter.schemes import KNOWN_SCHEMES
from exporter.system.files import near_paths

LARGEST_RECIPE_BYTES = 1 << 20
_NOT_IN_THE_FILE = frozenset({"folder", "sha256"})
RULES = ("auto", "minmax", "percentile", "mse", "entropy")

Dtype = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
Axis = Annotated[int, Field(gt=0)] | Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputTable(_Table):
    """`[[model.inputs]]`: one input of the model, in the order of `forward`'s arguments."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")
    dtype: Dtype = "float32"
    shape: tuple[Axis, ...]

    def spec(self) -> TensorSpec:
        """Return the framework-free form."""
        return TensorSpec(self.name, self.dtype, self.shape)


class ModelTable(_Table):
    """`[model]`: what the model is and where it comes from; `factory` (with `weights`) or `path`.

    `license` (an SPDX expression) and `description` (one paragraph) are handed on in the model card and the bill of
    materials, which say nothing where they are absent.
    """

    name: str
    version: str
    factory: str | None = None
    weights: Path | None = None
    path: Path | None = None
    inputs: tuple[InputTable, ...] = ()
    outputs: tuple[str, ...] = ()
    axes: Mapping[str, Annotated[int, Field(gt=0)]] = {}
    labels: tuple[str, ...] = ()
    license: str | None = Field(default=None, max_length=200)
    description: str | None = Field(default=None, min_length=1, max_length=2000)
    load_timeout_s: float = Field(default=300, gt=0)

    @field_validator("license")
    @classmethod
    def _license_is_spdx(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

        try:
            return str(canonicalize_license_expression(value))
        except InvalidLicenseExpression as error:
            raise ValueError(
                "a license is an SPDX expression, like Apache-2.0, MIT OR Apache-2.0, or LicenseRef-Ours"
            ) from error

    @field_validator("description")
    @classmethod
    def _description_is_a_paragraph(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or any(not sign.isprintable() for sign in value)):
            raise ValueError("a description is one paragraph of plain text, without line breaks")
        return value

    @field_validator("name")
    @classmethod
    def _name_is_portable(cls, value: str) -> str:
        if not re.fullmatch(NAME_RULE, value) or ".." in value:
            raise ValueError(f"a name is {NAME_RULE} without '..': it becomes file, Maven and Swift names")
        return value

    @field_validator("version")
    @classmethod
    def _version_is_semver(cls, value: str) -> str:
        if len(value) > 64 or not re.fullmatch(VERSION_RULE, value):
            raise ValueError("a version is SemVer, like 1.0.0 or 1.2.0-rc.1")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> ModelTable:
        if (self.factory is None) == (self.path is None):
            raise ValueError('give either factory = "file.py:callable" or path = "model.onnx"')
        if self.factory is not None and not re.fullmatch(r"[^:]+:[A-Za-z_][A-Za-z0-9_.]*", self.factory):
            raise ValueError('factory is "file.py:callable" or "package.module:callable"')
        if self.factory is not None and not self.inputs:
            raise ValueError("a factory's model needs [[model.inputs]] with name, dtype and shape")
        if self.path is not None and self.path.suffix.lower() != ".onnx" and not self.inputs:
            raise ValueError("a torch file needs [[model.inputs]] with name, dtype and shape")
        if self.weights is not None and self.factory is None:
            raise ValueError("weights go with a factory; a model file brings its own")
        names = [item.name for item in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError(f"two inputs are called {next(n for n in names if names.count(n) > 1)}")
        return self

    def axis_sizes(self, inputs: Sequence[TensorSpec]) -> dict[str, int]:
        """Return a size for every named axis: what `[model.axes]` says, and 1 for each leading axis.

        Raises `RecipeError` naming an axis that fixed-shape formats need and nobody sized.
        """
        leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
        sizes = {str(axis): 1 for axis in leading} | dict(self.axes)
        named = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
        for axis in sorted(named - set(sizes)):
            raise RecipeError(
                f"model.axes: axis {axis!r} has no size, and formats of fixed shape need one",
                fix=f"add to the recipe: [model.axes] {axis} = 128 (or the size your app uses)",
            )
        for axis in sorted(set(self.axes) - named):
            raise RecipeError(
                f"model.axes.{axis}: no input has an axis of that name",
                fix=f"the named axes are {', '.join(sorted(named)) or '(none)'}",
            )
        return sizes


class DataTable(_Table):
    """`[data]`: what the model is shown; every set is read by `calibration.sources`.

    `statistics` is a file that `edge-export calibrate` made of this model: its ranges are used, and `calibration` is
    then only needed by recovery methods and by formats with tensors of their own.

    `training` is what `[[compress]]` trains on and `validation` what chooses its best epoch (without one, a
    tenth of `training` is held out); `evaluation` judges what ships and is never trained on.
    """

    calibration: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    statistics: Path | None = None
    training: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] | None = None
    preprocess: Mapping[str, Any] | None = None
    metric: str | None = None


class QuantizeTable(_Table):
    """`[quantize]`: the scheme of the integer artifacts, how ranges are chosen, and what stays float.

    `keep` are glob patterns of node or module names, `keep_from` a file of such, one a line (`#` begins a comment):
    a build with a budget writes one. `recover` names methods that are always applied, in order. `max_drop` is the
    budget in points of the metric: the tool then climbs from cheap methods to float layers until it holds;
    `max_drop_verdict = "significant"` breaks it only for a loss that is no noise of the evaluation set.
    `conv_int4` stores convolutions in four bits too, where that is storage only.
    """

    scheme: str = "static_wi8_ai8"
    rule: Literal["auto", "minmax", "percentile", "mse", "entropy"] = "auto"
    keep: tuple[str, ...] = ()
    keep_from: Path | None = None
    recover: tuple[Literal["equalize", "smooth", "bias", "rounding"], ...] = ()
    max_drop: float | None = Field(default=None, ge=0)
    max_drop_verdict: Literal["measured", "significant"] = "measured"
    conv_int4: bool = False

    @field_validator("scheme")
    @classmethod
    def _scheme_is_known(cls, value: str) -> str:
        if value not in KNOWN_SCHEMES:
            near = difflib.get_close_matches(value, KNOWN_SCHEMES, n=3) or KNOWN_SCHEMES
            raise ValueError(f"no scheme is called {value!r}; use one of {', '.join(near)}")
        return value


class GatesTable(_Table):
    """`[gates]`: floors that every artifact of a build must hold, or nothing is published.

    `min_sqnr_db` in decibels, `min_agreement` 0..1, `max_size_mb` in 10^6 bytes. `min_sqnr_db` has a default
    because a broken artifact must not ship by omission.
    """

    min_sqnr_db: float = 10.0
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_size_mb: float | None = Field(default=None, gt=0)


class Recipe(_Table):
    """A whole recipe. `folder` is where relative paths start, `sha256` the digest of the file; neither is part of it."""

    model: ModelTable
    data: DataTable = DataTable()
    training: TrainingTable = TrainingTable()
    compress: tuple[CompressTable, ...] = ()
    quantize: QuantizeTable = QuantizeTable()
    tune: TuneTable | None = None
    gates: GatesTable = GatesTable()
    targets: Mapping[str, Mapping[str, Any]] = {}
    folder: Path = Field(default=Path(), exclude=True, repr=False)
    sha256: str | None = Field(default=None, exclude=True, repr=False)

    def resolve(self, path: Path) -> Path:
        """Return `path` as seen from the recipe's folder."""
        return path if path.is_absolute() else self.folder / path


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in `path`; `RecipeError` (exit 2) names the key, the value and the fix."""
    text = _text_of(path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}", fix="correct that line") from error
    except RecursionError as error:
        raise RecipeError(f"{path} nests tables too deeply", fix="write plain tables") from error
    for key in sorted(_NOT_IN_THE_FILE & set(tables)):
        raise RecipeError(f"{path}: {key}: unknown key", fix="remove it: the tool finds that out by itself")
    recipe = recipe_of(tables, path, folder=path.resolve().parent)
    return recipe.model_copy(update={"sha256": hashlib.sha256(text.encode()).hexdigest()})


def recipe_of(tables: Mapping[str, Any], name: Path | str, *, folder: Path) -> Recipe:
    """Return the recipe that `tables` spell, with paths relative to `folder`; errors call it `name`."""
    try:
        recipe = Recipe.model_validate(tables)
    except ValidationError as error:
        raise _first_problem(name, error) from error
    return _with_kept_layers(recipe.model_copy(update={"folder": folder}))


def _with_kept_layers(recipe: Recipe) -> Recipe:
    """Return `recipe` with the names in its `quantize.keep_from` added to `quantize.keep`."""
    if recipe.quantize.keep_from is None:
        return recipe
    lines = _text_of(recipe.resolve(recipe.quantize.keep_from)).splitlines()
    names = [line.partition("#")[0].strip() for line in lines]
    keep = tuple(dict.fromkeys([*recipe.quantize.keep, *(name for name in names if name)]))
    return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"keep": keep})})


def _text_of(path: Path) -> str:
    """Return the text of a recipe or of its list, never reading a device, a pipe or a file too large to be one."""
    fix = "name a text file; edge-export init writes a recipe"
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise RecipeError(f"the recipe {path} is {kind}", fix=fix)
        with path.open("rb") as stream:
            content = stream.read(LARGEST_RECIPE_BYTES + 1)
        if len(content) > LARGEST_RECIPE_BYTES:
            raise RecipeError(f"{path} is too large for a recipe ({path.stat().st_size} bytes)", fix=fix)
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = near_paths(path) if isinstance(error, FileNotFoundError) else []
        raise RecipeError(
            f"cannot read the recipe {path}: {_why(error)}",
            fix=f"did you mean {', '.join(near)}?" if near else fix,
        ) from error


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _first_problem(path: Path | str, error: ValidationError) -> RecipeError:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=3) or known
        return RecipeError(f"{path}: {where}: unknown key{more}", fix=f"known here: {', '.join(near)}")
    if problem["type"] == "missing":
        return RecipeError(f"{path}: {where}: missing{more}", fix=f"add {problem['loc'][-1]} = …")
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict) else f", not {problem['input']!r}"
    return RecipeError(
        f"{path}: {where}: {message}{given}{more}", fix="correct that key; edge-export schema lists them"
    )


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Return the keys that the table at `location` may have."""
    tables: dict[str, type[BaseModel]] = {
        "model": ModelTable,
        "data": DataTable,
        "quantize": QuantizeTable,
        "gates": GatesTable,
        "inputs": InputTable,
        "training": TrainingTable,
        "train": TrainingTable,
        "tune": TuneTable,
        "constraints": ConstraintsTable,
        "architecture": ArchitectureTable,
        **METHODS,
    }
    names = [part for part in location if isinstance(part, str)]
    table = tables[names[-1]] if names and names[-1] in tables else Recipe
    return sorted(set(table.model_fields) - _NOT_IN_THE_FILE)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    for name in _NOT_IN_THE_FILE:
        schema["properties"].pop(name, None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "edge-exporter recipe"
    return schema

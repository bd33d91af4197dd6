"""Decide what a build will make, before anything is loaded.

Recipe × Capabilities → Plan. Pure: no model file is opened and no framework imported; every refusal that
can be known from the recipe, the targets' data and what is installed comes here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import CalibrationError, RecipeError, UnsafeError, UnsupportedError, UsageError
from exporter.recipe.compression import DistillTable, PruneTable, QatTable, StudentTable, training_of
from exporter.recipe.recipe import Recipe
from exporter.schemes import Method, Scheme
from exporter.students.catalogue import complete_options, family_of
from exporter.system.converters.environment import missing_for
from exporter.system.extras import require_installed

if TYPE_CHECKING:
    from targets.base import Target, TargetOptions

DEFAULT_INTEGER_SCHEME = "static_wi8_ai8"


class Origin(StrEnum):
    """What kind of source a model comes from."""

    FACTORY = "factory"
    ONNX = "onnx"
    EXPORTED_PROGRAM = "exported-program"
    TORCH_FILE = "torch-file"


_ORIGIN_OF_SUFFIX = {
    ".onnx": Origin.ONNX,
    ".pt2": Origin.EXPORTED_PROGRAM,
    ".pt": Origin.TORCH_FILE,
    ".pth": Origin.TORCH_FILE,
    ".ts": Origin.TORCH_FILE,
    ".torchscript": Origin.TORCH_FILE,
}


@dataclass(frozen=True, slots=True)
class PlannedArtifact:
    """One file to make, and which target wants it for which of its runtimes."""

    spec: ArtifactSpec
    wanted_by: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One artifact that a target wants and this build cannot make, with the reason."""

    target: str
    spec: ArtifactSpec
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build will make. `options` are the validated recipe tables of the chosen targets."""

    recipe: Recipe
    origin: Origin
    trust_code: bool
    targets: Mapping[str, Target]
    options: Mapping[str, TargetOptions]
    artifacts: tuple[PlannedArtifact, ...]
    refused: tuple[Refusal, ...]

    @property
    def needs_calibration(self) -> bool:
        """Whether any artifact needs activation ranges."""
        return any(planned.spec.scheme.needs_calibration for planned in self.artifacts)

    @property
    def needs_program(self) -> bool:
        """Whether any artifact is converted from the torch module."""
        return any(planned.spec.format.needs_torch for planned in self.artifacts)

    def wanted(self, target: str) -> tuple[ArtifactSpec, ...]:
        """Return what `target` receives, in its order of preference."""
        return tuple(planned.spec for planned in self.artifacts if target in planned.wanted_by)


def make_plan(
    recipe: Recipe,
    targets: Mapping[str, Target],
    *,
    trust_code: bool = False,
    formats: Collection[Format] | None = None,
    only_installed: bool = False,
) -> Plan:
    """Return the plan of building `recipe` for `targets` (name → target, in order).

    `formats`, if given, are the only ones that are made. With `only_installed`, an artifact whose extra is not
    installed is refused with that reason, like one that its target cannot run; otherwise it ends the plan.

    Raises `RecipeError` for a bad target table, `UnsafeError` for a model file that is code without
    `trust_code`, `UnsupportedError` for an artifact that the target says it cannot run, a missing extra,
    or nothing left to make, and `CalibrationError` when a static scheme has no calibration data.
    """
    origin = _origin_of(recipe)
    _refuse_code(recipe, origin, trust_code)
    if not targets:
        raise UsageError(
            "the recipe names no target", fix="add a table such as [targets.android], or pass --target"
        )
    options = {name: _read_options(target, recipe.targets.get(name, {})) for name, target in targets.items()}
    wanted: dict[ArtifactSpec, dict[str, tuple[str, ...]]] = {}
    refused: list[Refusal] = []
    for name, target in targets.items():
        for spec in _wanted_specs(target, options[name], recipe):
            if formats is not None and spec.format not in formats:
                refused.append(Refusal(name, spec, f"only {', '.join(sorted(formats))} was asked for"))
                continue
            reason = _refusal(target, options[name], spec, origin)
            if reason is None and only_installed and (missing := missing_for(spec.format)) is not None:
                reason = f"{missing.cause}; {missing.fix}"
            if reason:
                refused.append(Refusal(name, spec, reason))
                continue
            runtimes = target.capabilities(options[name]).runtimes_for(spec)
            wanted.setdefault(spec, {})[name] = tuple(runtime.runtime for runtime in runtimes)
    artifacts = tuple(PlannedArtifact(spec, by) for spec, by in wanted.items())
    plan = Plan(recipe, origin, trust_code, targets, options, artifacts, tuple(refused))
    _check_plan(plan)
    return plan


def _origin_of(recipe: Recipe) -> Origin:
    if recipe.model.path is None:
        return Origin.FACTORY
    suffix = recipe.model.path.suffix.lower()
    if suffix not in _ORIGIN_OF_SUFFIX:
        raise UnsupportedError(
            f"model.path {recipe.model.path} ends in {suffix or 'nothing'}",
            fix=f"give one of {', '.join(_ORIGIN_OF_SUFFIX)}, or a factory with weights",
        )
    return _ORIGIN_OF_SUFFIX[suffix]


def _refuse_code(recipe: Recipe, origin: Origin, trust_code: bool) -> None:
    if origin in {Origin.EXPORTED_PROGRAM, Origin.TORCH_FILE} and not trust_code:
        raise UnsafeError(
            f"{recipe.model.path} can run code while it is read ({origin})",
            fix="give a factory with .safetensors weights, or pass --trust-code if you made this file yourself",
        )


def _read_options(target: Target, table: Mapping[str, object]) -> TargetOptions:
    try:
        return target.options_model.model_validate(dict(table))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(["targets", target.name, *(str(part) for part in problem["loc"])])
        known = ", ".join(sorted(target.options_model.model_fields))
        what = (
            "unknown key"
            if problem["type"] == "extra_forbidden"
            else problem["msg"].removeprefix("Value error, ")
        )
        raise RecipeError(f"{where}: {what}", fix=f"known keys here: {known}") from error


def _wanted_specs(target: Target, options: TargetOptions, recipe: Recipe) -> tuple[ArtifactSpec, ...]:
    if options.artifacts is not None:
        try:
            specs = tuple(ArtifactSpec.parse(text) for text in options.artifacts)
        except UsageError as error:
            raise RecipeError(f"targets.{target.name}.artifacts: {error.cause}", fix=error.fix) from error
    else:
        specs = tuple(_with_scheme(spec, recipe) for spec in target.default_artifacts(options))
    return tuple(dict.fromkeys(specs))


def _with_scheme(spec: ArtifactSpec, recipe: Recipe) -> ArtifactSpec:
    """A default artifact of the usual integer scheme takes the recipe's scheme instead."""
    if str(spec.scheme) != DEFAULT_INTEGER_SCHEME:
        return spec
    return ArtifactSpec(spec.format, Scheme.parse(recipe.quantize.scheme), spec.shapes)


def _refusal(target: Target, options: TargetOptions, spec: ArtifactSpec, origin: Origin) -> str | None:
    reason = target.capabilities(options).refusal(spec)
    if reason:
        if options.artifacts is not None:
            raise UnsupportedError(
                f"target {target.name} cannot take {spec}: {reason}",
                fix=f"change targets.{target.name}.artifacts; edge-export targets lists what it takes",
            )
        return reason
    if spec.format.needs_torch and origin is Origin.ONNX:
        return f".{spec.format} is converted from the torch module, and this model came as ONNX"
    return None


def _check_plan(plan: Plan) -> None:
    if not plan.artifacts:
        reasons = "; ".join(
            f"{refusal.spec} for {refusal.target}: {refusal.reason}" for refusal in plan.refused
        )
        raise UnsupportedError(
            f"nothing can be made: {reasons}", fix="change the scheme, targets or model source"
        )
    for kind in sorted({planned.spec.format for planned in plan.artifacts}):
        if (missing := missing_for(kind)) is not None:
            raise missing
    static = next((str(spec) for spec in _uncalibrated(plan)), None)
    if static is not None:
        raise CalibrationError(
            f"{static} needs calibration data and the recipe gives none",
            fix='add [data] calibration = { source = "npz", path = "…" }, or use scheme = "dynamic_wi8_ai8"',
        )
    _check_compression(plan)
    _check_files(plan)


def _uncalibrated(plan: Plan) -> Iterator[ArtifactSpec]:
    """Yield the artifacts that need calibration samples, or the statistics of some, which the recipe does not give."""
    data = plan.recipe.data
    for planned in plan.artifacts:
        # Formats born of the torch module have tensors that the statistics of the ONNX graph do not hold.
        served = data.statistics is not None and not planned.spec.format.needs_torch
        if planned.spec.scheme.needs_calibration and data.calibration is None and not served:
            yield planned.spec


def _check_compression(plan: Plan) -> None:
    """Refuse orders of steps that undo each other, trainings without data, and what nothing installed can do."""
    recipe = plan.recipe
    if recipe.compress and plan.origin is not Origin.FACTORY:
        raise UnsupportedError(
            f"[[compress]] changes the modules of a model, and {recipe.model.path} is a finished graph",
            fix="give the model as factory and weights, or remove [[compress]]",
        )
    for number, step in enumerate(recipe.compress):
        where = f"compress.{number} ({step.method})"
        training = training_of(step, recipe.training)
        if isinstance(step, PruneTable):
            require_installed(where, ("torch_pruning",), extra="compress")
        if training is not None:
            require_installed(where, ("accelerate",), extra="compress")
        if training is not None and recipe.data.training is None:
            stay = "" if isinstance(step, DistillTable | QatTable) else ", or train = false in the step"
            raise CalibrationError(
                f"{where} trains, and the recipe gives no training data",
                fix=f'add [data] training = {{ source = "npz", path = "…", labels = "label" }}{stay}',
            )
        if isinstance(step, StudentTable) and step.family is not None:
            complete_options(family_of(step.family), step.options)
        if isinstance(step, QatTable):
            _check_qat(recipe, step, where, last=number == len(recipe.compress) - 1)


def _check_qat(recipe: Recipe, step: QatTable, where: str, *, last: bool) -> None:
    scheme = Scheme.parse(step.scheme or recipe.quantize.scheme)
    if not last:
        raise RecipeError(
            f"{where} is not the last step: what follows would undo what it trained",
            fix="move qat to the end of [[compress]]",
        )
    if scheme.is_float or scheme.method is Method.DYNAMIC:
        raise RecipeError(
            f"{where}: there is nothing to train for in {scheme}",
            fix="set quantize.scheme (or the step's scheme) to static_wi8_ai8 or weight_only_wi4_b32",
        )
    if scheme.needs_calibration and recipe.data.calibration is None:
        raise CalibrationError(
            f"{where}: {scheme} starts from calibrated ranges, and the recipe gives no calibration data",
            fix='add [data] calibration = { source = "npz", path = "…" }',
        )


def _check_files(plan: Plan) -> None:
    """Look for the files that the recipe names, without opening them."""
    from exporter.system.files import require_file

    model, resolve = plan.recipe.model, plan.recipe.resolve
    files = [
        (model.path, "the model"),
        (model.weights, "the weights"),
        (plan.recipe.data.statistics, "the statistics"),
    ]
    code = [(model.factory, "the factory's file")]
    for number, step in enumerate(plan.recipe.compress):
        match step:
            case PruneTable():
                files.append((step.history, f"compress.{number}.history"))
            case StudentTable():
                files.append((step.weights, f"compress.{number}.weights"))
                code.append((step.factory, f"compress.{number}.factory"))
            case DistillTable():
                files.append((step.teacher_weights, f"compress.{number}.teacher_weights"))
                code.append((step.teacher, f"compress.{number}.teacher"))
        training = training_of(step, plan.recipe.training)
        if training is not None:
            own = (training.augment, training.function, training.loss if ":" in training.loss else None)
            code += [(reference, "the training's file") for reference in own]
    for path, what in files:
        if path is not None:
            require_file(resolve(path), what=what)
    for reference, what in code:
        if reference is not None and reference.partition(":")[0].endswith(".py"):
            require_file(resolve(Path(reference.partition(":")[0])), what=what)

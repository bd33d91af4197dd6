"""Kotlin sources for Android: one typed class per artifact, over the Java classes of its package, and its tests.

Pure: from a request to a mapping of paths to texts. Names and types come from the artifacts; the code itself lies in
`templates/android/`, which reads the dataclasses of this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from exporter.artifacts import TensorSpec
from exporter.errors import UnsupportedError
from targets import naming
from targets.android.kotlin_names import (
    ANDROID_TEST_FOLDER,
    GRADLE_FILE,
    LIBRARY_FOLDER,
    TEST_FOLDER,
    source_path,
    type_of,
)
from targets.android.model import AndroidModel
from targets.base import BundleRequest
from targets.documents import render

# How a dtype looks in Kotlin; float16 and one-byte types are raw bytes.
_ARRAYS = {
    "float32": "FloatArray",
    "float64": "DoubleArray",
    "int64": "LongArray",
    "int32": "IntArray",
    "int16": "ShortArray",
    **dict.fromkeys(("float16", "int8", "uint8", "bool"), "ByteArray"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output in Kotlin: the identifier that stands for it, and the type of its array."""

    spec: TensorSpec
    variable: str
    array: str


@dataclass(frozen=True, slots=True)
class TypedClass:
    """What the templates of one artifact's class and of its tests read.

    `axes` gives the parameter for each named axis, and none for LiteRT, whose files have fixed shapes; `opening` is how
    onnxruntime opens the file.
    """

    model: AndroidModel
    type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: Mapping[str, str]
    opening: Literal["cpu", "xnnpack", "npu"]


@dataclass(frozen=True, slots=True)
class Gradle:
    """What `build.gradle.kts` reads: the artifacts of a bundle, preferred first."""

    models: tuple[AndroidModel, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """One artifact in the README: the paths of its Kotlin and of its jar."""

    model: AndroidModel
    source: str
    library: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What `usage.md` reads: the artifacts, preferred first, the first one and its first input, and where things lie."""

    listed: tuple[Listed, ...]
    first: AndroidModel
    variable: str
    test_folder: str
    android_test_folder: str
    library_folder: str
    gradle_file: str


def models(request: BundleRequest, group: str) -> tuple[AndroidModel, ...]:
    """Return what each artifact of `request` is to Android, under the Maven group `group`.

    Raises `UnsupportedError` for a tensor whose dtype no Android runtime takes.
    """
    made = tuple(
        AndroidModel(
            name=request.card.name,
            version=request.card.version,
            group=group,
            spec=delivery.artifact.spec,
            file=delivery.artifact.path.name,
            sha256=delivery.artifact.sha256,
            inputs=delivery.artifact.inputs,
            outputs=delivery.artifact.outputs,
            runtimes=tuple(runtime.runtime for runtime in delivery.runtimes),
            labels=request.card.labels,
            contract=request.card.preprocess,
        )
        for delivery in request.deliveries
    )
    for model in made:
        for spec in (*model.inputs, *model.outputs):
            _require_known(model, spec)
    return made


def sources(models: Sequence[AndroidModel]) -> dict[str, str]:
    """Return every Kotlin file and the Gradle snippet by its path in the bundle."""
    texts = {GRADLE_FILE: render("android/build.gradle.kts", Gradle(tuple(models)))}
    for model in models:
        facts = _typed_class(model)
        texts[source_path(model)] = render(f"android/{model.runner}.kt", facts)
        texts[f"{ANDROID_TEST_FOLDER}/{facts.type}GoldenTest.kt"] = render("android/GoldenTest.kt", facts)
        if model.takes_pictures:
            texts[f"{TEST_FOLDER}/{facts.type}PicturesTest.kt"] = render("android/PicturesTest.kt", facts)
    return texts


def usage(models: Sequence[AndroidModel]) -> str:
    """Return the README's Markdown on how to run the models from Kotlin."""
    facts = Usage(
        listed=tuple(Listed(model, source_path(model), library_path(model)) for model in models),
        first=models[0],
        variable=naming.value_name(models[0].inputs[0].name),
        test_folder=TEST_FOLDER,
        android_test_folder=ANDROID_TEST_FOLDER,
        library_folder=LIBRARY_FOLDER,
        gradle_file=GRADLE_FILE,
    )
    return render("android/usage.md", facts)


def library_path(model: AndroidModel) -> str:
    """Return the path in a bundle of the jar that an app may copy: what the AAR has as its classes.jar."""
    return f"{LIBRARY_FOLDER}/{model.artifact_id}.jar"


def _require_known(model: AndroidModel, spec: TensorSpec) -> None:
    if spec.dtype not in _ARRAYS:
        raise UnsupportedError(
            f"{model.file}: tensor {spec.name!r} is {spec.dtype}, which Android's runtimes do not take",
            fix=f"give the model a tensor of one of {', '.join(sorted(_ARRAYS))}",
        )


def _typed_class(model: AndroidModel) -> TypedClass:
    axes = [] if model.is_litert else naming.axis_names(spec.shape for spec in model.inputs)
    # Inputs and axes are parameters of one function.
    names = naming.value_names([*(spec.name for spec in model.inputs), *axes])
    count = len(model.inputs)
    return TypedClass(
        model=model,
        type=type_of(model),
        inputs=_tensors(model.inputs, names[:count]),
        outputs=_tensors(model.outputs, naming.value_names(spec.name for spec in model.outputs)),
        axes=dict(zip(axes, names[count:], strict=True)),
        opening=_opening(model),
    )


def _tensors(specs: Sequence[TensorSpec], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec, name, _ARRAYS[spec.dtype]) for spec, name in zip(specs, names, strict=True))


def _opening(model: AndroidModel) -> Literal["cpu", "xnnpack", "npu"]:
    if model.needs_npu:
        return "npu"
    return "xnnpack" if "onnxruntime-xnnpack" in model.runtimes else "cpu"

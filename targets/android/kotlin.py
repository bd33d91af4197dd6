"""Kotlin sources for Android: one typed class per artifact, over the Java classes of its package, and its tests.

Pure: from a request to a mapping of paths to texts. Names, shapes and types come from the artifacts; the code itself lies
in `templates/android/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class _Opening:
    """How an onnxruntime model is opened: what the documentation says, the parameters, the expression."""

    doc: str
    parameters: str
    expression: str


_ON_NPU = _Opening(
    "Runs on the Snapdragon NPU; it needs the onnxruntime-android-qnn package.",
    "",
    "OnnxModel.onSnapdragonNpu(model)",
)
_ON_XNNPACK = _Opening(
    "`useXnnpack` hands what XNNPACK takes to it; measure both ways on the phone.",
    ", threads: Int = 4, useXnnpack: Boolean = false",
    "if (useXnnpack) OnnxModel.onXnnpack(model, threads) else OnnxModel.onCpu(model, threads)",
)
_ON_CPU = _Opening("Runs on the CPU.", ", threads: Int = 4", "OnnxModel.onCpu(model, threads)")


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
    texts = {GRADLE_FILE: _gradle(models)}
    for model in models:
        name = type_of(model)
        texts[source_path(model)] = _litert_source(model) if model.is_litert else _onnx_source(model)
        texts[f"{ANDROID_TEST_FOLDER}/{name}GoldenTest.kt"] = _golden_test(model)
        if model.takes_pictures:
            texts[f"{TEST_FOLDER}/{name}PicturesTest.kt"] = render("android/PicturesTest.kt", _titles(model))
    return texts


def usage(models: Sequence[AndroidModel]) -> str:
    """Return the README's Markdown on how to run the models from Kotlin."""
    first = models[0]
    lines = [
        "One line in Gradle brings a model with its runtime and the code that runs it, once this bundle is published "
        "(`edge-export publish`, a folder will do):",
        "",
        "```kotlin",
        "// settings.gradle.kts, dependencyResolutionManagement { repositories { … } }, beside google() and mavenCentral()",
        'maven { url = uri("REGISTRY/maven") }',
        "// build.gradle.kts of the app",
        f'implementation("{_coordinates(first)}")',
        "```",
        "",
        "| model | dependency | typed Kotlin, if you like it |",
        "|---|---|---|",
        *(f"| `{model.file}` | `{_coordinates(model)}` | `{source_path(model)}` |" for model in models),
        "",
        "```kotlin",
        *_example(first),
        "```",
        "",
        "The bytes of the asset are checked against the digest of the file that was validated. Tests replay the golden "
        f"vectors: `{TEST_FOLDER}/` for `src/test`, `{ANDROID_TEST_FOLDER}/` for `src/androidTest`, with the artifact "
        "`…-golden` of the same version as their dependency.",
        "",
        f"Without a registry: copy the model to the app's `assets/{first.asset.rpartition('/')[0]}/` and its jar from "
        f"`{LIBRARY_FOLDER}/` to the app's `libs/`, and merge `{GRADLE_FILE}` into the app's build file with "
        '`implementation(files("libs/….jar"))` and the runtime:',
        "",
        *(
            f"- `{model.file}`: `{library_path(model)}`, "
            + ", ".join(f"`{':'.join(library)}`" for library in model.dependencies)
            for model in models
        ),
    ]
    return "\n".join(lines)


def library_path(model: AndroidModel) -> str:
    """Return the path in a bundle of the jar that an app may copy: what the AAR has as its classes.jar."""
    return f"{LIBRARY_FOLDER}/{model.artifact_id}.jar"


def _require_known(model: AndroidModel, spec: TensorSpec) -> None:
    if spec.dtype not in _ARRAYS:
        raise UnsupportedError(
            f"{model.file}: tensor {spec.name!r} is {spec.dtype}, which Android's runtimes do not take",
            fix=f"give the model a tensor of one of {', '.join(sorted(_ARRAYS))}",
        )


def _coordinates(model: AndroidModel, suffix: str = "") -> str:
    return f"{model.group}:{model.artifact_id}{suffix}:{model.version}"


def _example(model: AndroidModel) -> list[str]:
    runner = "LiteRtModel(bytes, 4)" if model.is_litert else "OnnxModel.onCpu(bytes, 4)"
    if model.needs_npu:
        runner = "OnnxModel.onSnapdragonNpu(bytes)"
    lines = [
        f"import {model.package}.*",
        "",
        "val bytes = context.assets.open(ModelInfo.get().asset()).use { it.readBytes() }",
        f"val model = {runner}",
    ]
    if not model.takes_pictures:
        first = model.inputs[0]
        name = naming.value_name(first.name)
        return [*lines, f"val answers = model.run(mapOf({naming.kotlin_string(first.name)} to {name}))"]
    lines += [
        "val argb = IntArray(bitmap.width * bitmap.height)",
        "bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)",
    ]
    if model.classifies:
        return [*lines, "val best = model.classify(argb, bitmap.width, bitmap.height, 1)[0].name()"]
    name = naming.kotlin_string(model.inputs[0].name)
    return [
        *lines,
        f"val answers = model.run(mapOf({name} to Preprocessing.tensor(argb, bitmap.width, bitmap.height)))",
    ]


def _titles(model: AndroidModel) -> dict[str, str]:
    return {
        "title": naming.comment(f"{model.name} {model.version}"),
        "artifact": str(model.spec),
        "coordinates": _coordinates(model),
        "golden_coordinates": _coordinates(model, "-golden"),
        "package": model.package,
        "type": type_of(model),
    }


def _shared(model: AndroidModel, names: Sequence[str]) -> dict[str, str]:
    outputs = naming.value_names(spec.name for spec in model.outputs)
    shapes = ", ".join(
        f"`{name}` is {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        for name, spec in zip(names, model.inputs, strict=False)
    )
    return {
        **_titles(model),
        "asset": naming.kotlin_string(model.asset),
        "output_fields": ",\n".join(
            f"        val {name}: {_ARRAYS[spec.dtype]}"
            for name, spec in zip(outputs, model.outputs, strict=True)
        ),
        "run_doc": naming.comment(f"{shapes}."),
        "feeds": ", ".join(
            f"{naming.kotlin_string(spec.name)} to {name}"
            for name, spec in zip(names, model.inputs, strict=False)
        ),
        "results": ",\n".join(
            f"            results[{naming.kotlin_string(spec.name)}] as {_ARRAYS[spec.dtype]}"
            for spec in model.outputs
        ),
        "pictures": _pictures(model),
    }


def _axes(model: AndroidModel) -> tuple[list[str], dict[str, str]]:
    """Return the parameters of the inputs, and those of named axes by the axis."""
    axes = naming.axis_names(spec.shape for spec in model.inputs)
    tensors = [spec.name for spec in model.inputs]
    names = naming.value_names([*tensors, *axes])
    return names[: len(tensors)], dict(zip(axes, names[len(tensors) :], strict=True))


def _onnx_source(model: AndroidModel) -> str:
    names, axes = _axes(model)
    parameters = _parameters(model, names) + [f"{name}: Long" for name in axes.values()]
    sizes = ", ".join(f"{naming.kotlin_string(axis)} to {name}" for axis, name in axes.items())
    opening = _ON_XNNPACK if "onnxruntime-xnnpack" in model.runtimes else _ON_CPU
    if model.needs_npu:
        opening = _ON_NPU
    return render(
        "android/OnnxModel.kt",
        {
            **_shared(model, names),
            "provider_doc": opening.doc,
            "provider_parameters": opening.parameters,
            "open": opening.expression,
            "parameters": ", ".join(parameters),
            "axes": f", mapOf({sizes})" if axes else "",
        },
    )


def _litert_source(model: AndroidModel) -> str:
    names, _ = _axes(model)
    on_gpu = "litert-gpu" in model.runtimes
    return render(
        "android/LiteRtModel.kt",
        {
            **_shared(model, names),
            "provider_doc": "GPU: `Interpreter.Options().addDelegate(org.tensorflow.lite.gpu.GpuDelegate())`."
            if on_gpu
            else "CPU only: `Interpreter.Options().setNumThreads(4)`; the GPU delegate takes no integer files.",
            "parameters": ", ".join(_parameters(model, names)),
        },
    )


def _parameters(model: AndroidModel, names: Sequence[str]) -> list[str]:
    return [f"{name}: {_ARRAYS[spec.dtype]}" for name, spec in zip(names, model.inputs, strict=True)]


def _pictures(model: AndroidModel) -> str:
    """Return the functions that take a picture, or nothing for a model that takes tensors as they are."""
    if not model.takes_pictures:
        return ""
    array = _ARRAYS[model.inputs[0].dtype]
    pixels = "argb: IntArray, width: Int, height: Int"
    blocks = [
        "",
        "    /** Returns the input for one picture: one Int a pixel, 0xAARRGGBB, as `Bitmap.getPixels` gives them. */",
        f"    fun prepare({pixels}): {array} = Preprocessing.tensor(argb, width, height) as {array}",
    ]
    if model.classifies:
        blocks += [
            "",
            "    /** Returns the `count` best labels for one picture, best first; scores are as the model gives them. */",
            f"    fun classify({pixels}, count: Int = 3): List<Label> = session.classify(argb, width, height, count)",
        ]
    return "\n".join([*blocks, ""])


_PICTURES_TEST = """\
    @Test
    fun preparesPicturesAsCalibrationDid() {
        val mistakes = GoldenVectors.read().preparationMistakes(
            { png ->
                val bitmap = BitmapFactory.decodeByteArray(png, 0, png.size)
                val argb = IntArray(bitmap.width * bitmap.height)
                bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
                Picture(argb, bitmap.width, bitmap.height)
            },
            // Put the app's own way from pixels to the tensor here, where it does not use Preprocessing.
            { argb, width, height -> Preprocessing.tensor(argb, width, height) }
        )
        assertEquals("", mistakes.joinToString("\\n"))
    }

"""


def _golden_test(model: AndroidModel) -> str:
    _, axes = _axes(model) if not model.is_litert else ((), {})
    outputs = naming.value_names(spec.name for spec in model.outputs)
    arguments = [
        f"inputs.getValue({naming.kotlin_string(spec.name)}) as {_ARRAYS[spec.dtype]}"
        for spec in model.inputs
    ] + [f"axes.getValue({naming.kotlin_string(axis)})" for axis in axes]
    answers = [
        f"{naming.kotlin_string(spec.name)} to answer.{name}"
        for name, spec in zip(outputs, model.outputs, strict=True)
    ]
    return render(
        "android/GoldenTest.kt",
        {
            **_titles(model),
            "imports": "import android.graphics.BitmapFactory\n" if model.takes_pictures else "",
            "pictures_test": _PICTURES_TEST if model.takes_pictures else "",
            "axes_name": "axes" if axes else "_",
            "arguments": ", ".join(arguments),
            "answers": ", ".join(answers),
        },
    )


def _gradle(models: Sequence[AndroidModel]) -> str:
    lines = [
        f'    {"// " if place else ""}implementation("{_coordinates(model)}")  // {naming.comment(_note(model))}'
        for place, model in enumerate(models)
    ]
    lines += [
        f'    {configuration}("{_coordinates(models[0], "-golden")}")'
        for configuration in ("testImplementation", "androidTestImplementation")
    ]
    return render("android/build.gradle.kts", {**_titles(models[0]), "dependencies": "\n".join(lines)})


def _note(model: AndroidModel) -> str:
    return f"{model.file} on {', '.join(model.runtimes)}; brings " + ", ".join(
        f"{artifact} {version}" for _, artifact, version in model.dependencies
    )

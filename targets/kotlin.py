"""Kotlin sources for Android: one self-contained file per artifact, and the preprocessing.

Pure: from a request to a mapping of paths to texts. Names, shapes and types come from the artifacts; the
code itself lies in `templates/android/`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.artifacts import Artifact, Format, TensorSpec
from exporter.errors import UnsupportedError
from targets import naming
from targets.base import BundleRequest, Delivery
from targets.documents import render

FOLDER = "integration/kotlin"
GRADLE_FILE = "integration/build.gradle.kts"

# Old enough to exist everywhere and new enough for opset 21 and IR 10; the snippet says to take newer ones.
_DEPENDENCIES = {
    "onnxruntime": 'implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0")',
    "onnxruntime-qnn": 'implementation("com.microsoft.onnxruntime:onnxruntime-android-qnn:1.20.0")',
    "litert": 'implementation("com.google.ai.edge.litert:litert:1.0.1")',
    "litert-gpu": 'implementation("com.google.ai.edge.litert:litert-gpu:1.0.1")',
}


@dataclass(frozen=True, slots=True)
class _Element:
    """How a dtype looks in Kotlin: its array, its java.nio buffer (empty: raw bytes), its ONNX type."""

    array: str
    buffer: str
    onnx_type: str
    size_bytes: int

    @property
    def accessor(self) -> str:
        return f"{self.buffer[0].lower()}{self.buffer[1:]}" if self.buffer else "byteBuffer"


_ELEMENTS: Mapping[str, _Element] = {
    "float32": _Element("FloatArray", "FloatBuffer", "FLOAT", 4),
    "float64": _Element("DoubleArray", "DoubleBuffer", "DOUBLE", 8),
    "int64": _Element("LongArray", "LongBuffer", "INT64", 8),
    "int32": _Element("IntArray", "IntBuffer", "INT32", 4),
    "int16": _Element("ShortArray", "ShortBuffer", "INT16", 2),
    "float16": _Element("ByteArray", "", "FLOAT16", 2),
    "int8": _Element("ByteArray", "", "INT8", 1),
    "uint8": _Element("ByteArray", "", "UINT8", 1),
    "bool": _Element("ByteArray", "", "BOOL", 1),
}
# What a contract's dtype becomes; float16 has no array type in Kotlin, and no code is generated for it.
_CASTS = {
    "float32": ("FloatArray", "value.toFloat()"),
    "uint8": ("ByteArray", "Math.max(0.0, Math.min(255.0, Math.rint(value))).toInt().toByte()"),
    "int8": ("ByteArray", "Math.max(-128.0, Math.min(127.0, Math.rint(value))).toInt().toByte()"),
}


def sources(request: BundleRequest) -> dict[str, str]:
    """Return every Kotlin file and the Gradle snippet by its path in the bundle.

    Raises `UnsupportedError` for a tensor whose dtype no Kotlin runtime takes.
    """
    texts = {GRADLE_FILE: _gradle(request)}
    for delivery in request.deliveries:
        write = _litert_source if delivery.artifact.spec.format is Format.TFLITE else _onnx_source
        texts[f"{FOLDER}/{type_of(request, delivery.artifact)}.kt"] = write(request, delivery)
    if request.card.preprocess.get("dtype") in _CASTS:
        texts[f"{FOLDER}/{preprocessing_type(request)}.kt"] = _preprocessing(request)
    return texts


def usage(request: BundleRequest, paths: Sequence[str]) -> str:
    """Return the README's Markdown on how to run the models from Kotlin."""
    lines = [
        "Copy a model into the app's `assets/`, its Kotlin file (no others needed) into the sources, and "
        "merge "
        f"`{GRADLE_FILE}` into the app's build file.",
        "",
        "| model | Kotlin |",
        "|---|---|",
    ]
    for delivery in request.deliveries:
        path = f"{FOLDER}/{type_of(request, delivery.artifact)}.kt"
        lines.append(f"| `{delivery.artifact.path.name}` | `{path}` |")
    preprocessing = f"{FOLDER}/{preprocessing_type(request)}.kt"
    if preprocessing in paths:
        lines += ["", f"`{preprocessing}` turns the pixels of a `Bitmap` into the input tensor."]
    elif request.card.preprocess.get("kind") == "image":
        lines += [
            "",
            f"No Kotlin is generated for {request.card.preprocess['dtype']} tensors: follow "
            f"`preprocess.json`.",
        ]
    return "\n".join(lines)


def type_of(request: BundleRequest, artifact: Artifact) -> str:
    """Return the Kotlin class name of one artifact, for example `DigitsStaticWi8Ai8Onnx`."""
    runtime = {Format.ONNX: "Onnx", Format.ORT: "Ort", Format.TFLITE: "LiteRt"}[artifact.spec.format]
    return naming.type_name(request.card.name, artifact.spec.stem_suffix, runtime)


def preprocessing_type(request: BundleRequest) -> str:
    """Return the name of the Kotlin object that holds the preprocessing contract."""
    return naming.type_name(request.card.name, "preprocessing")


def _package(request: BundleRequest) -> str:
    # The prefix keeps a name that starts with a digit, or is a keyword, a legal package.
    return f"edge.model_{'_'.join(naming.words(request.card.name)).lower()}"


def _element(artifact: Artifact, spec: TensorSpec) -> _Element:
    if spec.dtype not in _ELEMENTS:
        raise UnsupportedError(
            f"{artifact.path.name}: tensor {spec.name!r} is {spec.dtype}, which Android's runtimes do not "
            f"take",
            fix=f"give the model a tensor of one of {', '.join(sorted(_ELEMENTS))}",
        )
    return _ELEMENTS[spec.dtype]


def _shared(request: BundleRequest, artifact: Artifact) -> dict[str, str]:
    names = naming.value_names(spec.name for spec in artifact.inputs)
    outputs = naming.value_names(spec.name for spec in artifact.outputs)
    fields = [
        f"        val {name}: {_element(artifact, spec).array}"
        for name, spec in zip(outputs, artifact.outputs, strict=True)
    ]
    shapes = ", ".join(
        f"`{name}` is {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        for name, spec in zip(names, artifact.inputs, strict=True)
    )
    return {
        "title": naming.comment(f"{request.card.name} {request.card.version}"),
        "artifact": str(artifact.spec),
        "file": naming.kotlin_string(artifact.path.name),
        "file_comment": naming.comment(artifact.path.name),
        "package": _package(request),
        "type": type_of(request, artifact),
        "output_fields": ",\n".join(fields),
        "run_doc": naming.comment(f"{shapes}."),
    }


def _onnx_source(request: BundleRequest, delivery: Delivery) -> str:
    artifact = delivery.artifact
    axes = naming.axis_names(spec.shape for spec in artifact.inputs)
    tensors = [spec.name for spec in artifact.inputs]
    names = naming.value_names([*tensors, *axes])
    sizes = dict(zip(axes, names[len(tensors) :], strict=True))
    parameters = [
        f"{name}: {_element(artifact, spec).array}"
        for name, spec in zip(names, artifact.inputs, strict=False)
    ]
    parameters += [f"{name}: Long" for name in sizes.values()]
    results = [
        f"                    {_onnx_answer(_element(artifact, spec), spec)}" for spec in artifact.outputs
    ]
    feeds = [
        f"            {_onnx_feed(name, spec, _element(artifact, spec), sizes)}"
        for name, spec in zip(names, artifact.inputs, strict=False)
    ]
    return render(
        "android/OnnxModel.kt",
        {
            **_shared(request, artifact),
            **_provider(delivery),
            "parameters": ", ".join(parameters),
            "feeds": "\n".join(feeds),
            "results": ",\n".join(results),
        },
    )


def _provider(delivery: Delivery) -> dict[str, str]:
    """Return the parts of the source that choose onnxruntime's execution provider."""
    names = [runtime.runtime for runtime in delivery.runtimes]
    if "onnxruntime-qnn" in names and "onnxruntime-cpu" not in names:
        return {
            "provider_doc": "Runs on the Snapdragon NPU; it needs the onnxruntime-android-qnn package.",
            "provider_parameter": "",
            "provider_setup": '        settings.addQnn(mapOf("backend_path" to "libQnnHtp.so"))',
        }
    if "onnxruntime-xnnpack" in names:
        return {
            "provider_doc": "`useXnnpack` hands what XNNPACK takes to it; measure both ways on the phone.",
            "provider_parameter": ", useXnnpack: Boolean = false",
            "provider_setup": "        if (useXnnpack) {\n"
            '            settings.addXnnpack(mapOf("intra_op_num_threads" to threads.toString()))\n'
            "        }",
        }
    return {
        "provider_doc": "Runs on the CPU.",
        "provider_parameter": "",
        "provider_setup": "        settings.setInterOpNumThreads(1)",
    }


def _onnx_feed(name: str, spec: TensorSpec, element: _Element, sizes: Mapping[str, str]) -> str:
    dimensions = ", ".join(sizes[axis] if isinstance(axis, str) else f"{axis}L" for axis in spec.shape)
    shape = f"longArrayOf({dimensions})"
    if element.buffer:
        tensor = f"OnnxTensor.createTensor(environment, {element.buffer}.wrap({name}), {shape})"
    else:
        tensor = (
            f"OnnxTensor.createTensor(environment, bytes({name}), {shape}, OnnxJavaType.{element.onnx_type})"
        )
    return f"feeds[{naming.kotlin_string(spec.name)}] = {tensor}"


def _onnx_answer(element: _Element, spec: TensorSpec) -> str:
    tensor = f"tensorOf(results, {naming.kotlin_string(spec.name)}).{element.accessor}"
    return f"{tensor}.let {{ {element.array}(it.remaining()).apply {{ it.get(this) }} }}"


def _litert_source(request: BundleRequest, delivery: Delivery) -> str:
    artifact = delivery.artifact
    names = naming.value_names(spec.name for spec in artifact.inputs)
    elements = [_element(artifact, spec) for spec in artifact.inputs]
    feeds = [
        f"            {label} to filled({label}, {_size_bytes(spec, element)}, "
        f"{name}.size * {_stride(element)}) {{ it.{_typed(element)}put({name}) }}"
        for name, spec, element in zip(names, artifact.inputs, elements, strict=True)
        if (label := naming.kotlin_string(spec.name))
    ]
    answers = [(naming.kotlin_string(spec.name), spec, _element(artifact, spec)) for spec in artifact.outputs]
    buffers = [
        f"            {label} to direct({_size_bytes(spec, element)})" for label, spec, element in answers
    ]
    results = [
        f"            answer(buffers, {label}).{_typed(element)}let "
        f"{{ {element.array}(it.remaining()).apply {{ it.get(this) }} }}"
        for label, _, element in answers
    ]
    on_gpu = any(runtime.runtime == "litert-gpu" for runtime in delivery.runtimes)
    return render(
        "android/LiteRtModel.kt",
        {
            **_shared(request, artifact),
            "provider_doc": "GPU: `Interpreter.Options().addDelegate(org.tensorflow.lite.gpu.GpuDelegate())`."
            if on_gpu
            else "CPU only: `Interpreter.Options().setNumThreads(4)`; the GPU delegate takes no integer "
            "files.",
            "parameters": ", ".join(
                f"{name}: {element.array}" for name, element in zip(names, elements, strict=True)
            ),
            "feeds": ",\n".join(feeds),
            "buffers": ",\n".join(buffers),
            "results": ",\n".join(results),
        },
    )


def _typed(element: _Element) -> str:
    return f"as{element.buffer}()." if element.buffer else ""


def _stride(element: _Element) -> int:
    return element.size_bytes if element.buffer else 1


def _size_bytes(spec: TensorSpec, element: _Element) -> int:
    return math.prod(axis for axis in spec.shape if isinstance(axis, int)) * element.size_bytes


def _preprocessing(request: BundleRequest) -> str:
    contract = request.card.preprocess
    array, cast = _CASTS[contract["dtype"]]
    height, width = contract["size"]
    return render(
        "android/Preprocessing.kt",
        {
            "title": naming.comment(f"{request.card.name} {request.card.version}"),
            "package": _package(request),
            "type": preprocessing_type(request),
            "width": str(width),
            "height": str(height),
            **{key: str(contract[key]) for key in ("color", "layout", "resize", "fit", "pad")},
            "scale": repr(float(contract["scale"])),
            "mean": ", ".join(repr(float(value)) for value in contract["mean"]),
            "std": ", ".join(repr(float(value)) for value in contract["std"]),
            "array": array,
            "cast": cast,
        },
    )


def _gradle(request: BundleRequest) -> str:
    names = {runtime.runtime for delivery in request.deliveries for runtime in delivery.runtimes}
    needed = []
    if names & {"onnxruntime-cpu", "onnxruntime-xnnpack"}:
        needed.append("onnxruntime")
    # The QNN package holds the CPU provider too; two packages would bring the same native library twice.
    if "onnxruntime-qnn" in names:
        needed = ["onnxruntime-qnn"]
    if names & {"litert-xnnpack", "litert-gpu"}:
        needed.append("litert")
    if "litert-gpu" in names:
        needed.append("litert-gpu")
    return render(
        "android/build.gradle.kts",
        {
            "title": naming.comment(f"{request.card.name} {request.card.version}"),
            "dependencies": "\n".join(f"    {_DEPENDENCIES[name]}" for name in needed),
        },
    )

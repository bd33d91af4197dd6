"""Swift sources for iOS: one self-contained file per artifact, and the preprocessing.

Pure: from a request to a mapping of paths to texts. Names, shapes and types come from the artifacts; the
code itself lies in `templates/ios/`. No Swift compiler exists in Debian, so what the tests hold is that
nothing is left unfilled and that brackets and strings close; build it in Xcode before relying on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.artifacts import Artifact, Format, TensorSpec
from exporter.errors import UnsupportedError
from targets import naming
from targets.base import BundleRequest, Delivery
from targets.documents import render

FOLDER = "integration/swift"
MANIFEST = "integration/Package.swift"
_ONNXRUNTIME_PACKAGE = (
    '.package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0")'
)
_ONNXRUNTIME_PRODUCT = '.product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")'


@dataclass(frozen=True, slots=True)
class _Element:
    """How a dtype looks in Swift: its element type, its Core ML and onnxruntime types (empty: not taken)."""

    swift: str
    core_ml: str
    onnx: str
    from_number: str


# Core ML arrays hold float16, float32, float64 and int32 only.
_ELEMENTS: Mapping[str, _Element] = {
    "float32": _Element("Float", ".float32", ".float", "floatValue"),
    "float16": _Element("Float16", ".float16", "", "floatValue"),
    "float64": _Element("Double", ".double", "", "doubleValue"),
    "int32": _Element("Int32", ".int32", ".int32", "int32Value"),
    "int64": _Element("Int64", "", ".int64", "int64Value"),
    "int8": _Element("Int8", "", ".int8", "int8Value"),
    "uint8": _Element("UInt8", "", ".uInt8", "uint8Value"),
}
_CASTS = {
    "float32": ("Float", "Float(value)"),
    "uint8": ("UInt8", "UInt8(max(0, min(255, value.rounded(.toNearestOrEven))))"),
    "int8": ("Int8", "Int8(max(-128, min(127, value.rounded(.toNearestOrEven))))"),
}


def sources(request: BundleRequest, *, minimum: str) -> dict[str, str]:
    """Return every Swift file and the package manifest for iOS `minimum` by its path in the bundle.

    Raises `UnsupportedError` for a tensor whose dtype the runtime's Swift interface does not take.
    """
    texts = {MANIFEST: _manifest(request, minimum)}
    for delivery in request.deliveries:
        write = _core_ml_source if delivery.artifact.spec.format is Format.MLPACKAGE else _onnx_source
        texts[f"{FOLDER}/{type_of(request, delivery.artifact)}.swift"] = write(request, delivery)
    if request.card.preprocess.get("dtype") in _CASTS:
        texts[f"{FOLDER}/{preprocessing_type(request)}.swift"] = _preprocessing(request)
    return texts


def usage(request: BundleRequest, paths: Sequence[str]) -> str:
    """Return the README's Markdown on how to run the models from Swift."""
    lines = [
        f"Add a model and its Swift file to the app target in Xcode, or start from `{MANIFEST}`.",
        "",
        "| model | Swift |",
        "|---|---|",
    ]
    for delivery in request.deliveries:
        path = f"{FOLDER}/{type_of(request, delivery.artifact)}.swift"
        lines.append(f"| `{delivery.artifact.path.name}` | `{path}` |")
    preprocessing = f"{FOLDER}/{preprocessing_type(request)}.swift"
    if preprocessing in paths:
        lines += ["", f"`{preprocessing}` turns RGBA pixels into the input tensor."]
    elif request.card.preprocess.get("kind") == "image":
        lines += [
            "",
            f"No Swift is generated for {request.card.preprocess['dtype']} tensors: follow "
            f"`preprocess.json`.",
        ]
    return "\n".join(lines)


def type_of(request: BundleRequest, artifact: Artifact) -> str:
    """Return the Swift class name of one artifact, for example `DigitsFloat16CoreML`."""
    runtime = {Format.ONNX: "Onnx", Format.ORT: "Ort", Format.MLPACKAGE: "CoreML"}[artifact.spec.format]
    return naming.type_name(request.card.name, artifact.spec.stem_suffix, runtime)


def preprocessing_type(request: BundleRequest) -> str:
    """Return the name of the Swift enum that holds the preprocessing contract."""
    return naming.type_name(request.card.name, "preprocessing")


def _element(artifact: Artifact, spec: TensorSpec) -> _Element:
    element = _ELEMENTS.get(spec.dtype)
    takes = element and (element.core_ml if artifact.spec.format is Format.MLPACKAGE else element.onnx)
    if element is None or not takes:
        raise UnsupportedError(
            f"{artifact.path.name}: tensor {spec.name!r} is {spec.dtype}, which its Swift interface does "
            f"not take",
            fix="give the model a float32 or int32 tensor there, or leave this artifact out of [targets.ios]",
        )
    return element


def _shared(request: BundleRequest, artifact: Artifact) -> dict[str, str]:
    inputs = naming.value_names(spec.name for spec in artifact.inputs)
    outputs = naming.value_names(spec.name for spec in artifact.outputs)
    fields = [
        f"        public let {name}: [{_answer_type(artifact, spec)}]"
        for name, spec in zip(outputs, artifact.outputs, strict=True)
    ]
    shapes = ", ".join(
        f"`{name}` is {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        for name, spec in zip(inputs, artifact.inputs, strict=True)
    )
    return {
        "title": naming.comment(f"{request.card.name} {request.card.version}"),
        "artifact": str(artifact.spec),
        "file_comment": naming.comment(artifact.path.name),
        "type": type_of(request, artifact),
        "output_fields": "\n".join(fields),
        "run_doc": naming.comment(f"{shapes}."),
    }


def _answer_type(artifact: Artifact, spec: TensorSpec) -> str:
    element = _element(artifact, spec)
    # Core ML's numbers come out widened; a float16 answer is read as Float.
    return "Float" if element.swift == "Float16" else element.swift


def _core_ml_source(request: BundleRequest, delivery: Delivery) -> str:
    artifact = delivery.artifact
    inputs = naming.value_names(spec.name for spec in artifact.inputs)
    outputs = naming.value_names(spec.name for spec in artifact.outputs)
    elements = [_element(artifact, spec) for spec in artifact.inputs]
    feeds = [
        f"            {naming.swift_string(spec.name)}: try Self.tensor({name}, "
        f"[{', '.join(map(str, spec.shape))}], {element.core_ml})"
        for name, spec, element in zip(inputs, artifact.inputs, elements, strict=True)
    ]
    results = [
        f"            {name}: try Self.numbers(results, {naming.swift_string(spec.name)})"
        f".map {{ $0.{_element(artifact, spec).from_number} }}"
        for name, spec in zip(outputs, artifact.outputs, strict=True)
    ]
    return render(
        "ios/CoreMLModel.swift",
        {
            **_shared(request, artifact),
            "resource": naming.swift_string(artifact.path.name.removesuffix(".mlpackage")),
            "parameters": ", ".join(
                f"{name}: [{element.swift}]" for name, element in zip(inputs, elements, strict=True)
            ),
            "feeds": ",\n".join(feeds),
            "results": ",\n".join(results),
        },
    )


def _onnx_source(request: BundleRequest, delivery: Delivery) -> str:
    artifact = delivery.artifact
    axes = naming.axis_names(spec.shape for spec in artifact.inputs)
    names = naming.value_names([*(spec.name for spec in artifact.inputs), *axes])
    sizes = dict(zip(axes, names[len(artifact.inputs) :], strict=True))
    outputs = naming.value_names(spec.name for spec in artifact.outputs)
    parameters = [
        f"{name}: [{_element(artifact, spec).swift}]"
        for name, spec in zip(names, artifact.inputs, strict=False)
    ]
    feeds = [
        f"            {naming.swift_string(spec.name)}: try Self.tensor({name}, "
        f"[{', '.join(_dimension(axis, sizes) for axis in spec.shape)}], {_element(artifact, spec).onnx})"
        for name, spec in zip(names, artifact.inputs, strict=False)
    ]
    results = [
        f"            {name}: try Self.values(results, {naming.swift_string(spec.name)}, "
        f"as: {_element(artifact, spec).swift}.self)"
        for name, spec in zip(outputs, artifact.outputs, strict=True)
    ]
    uses_core_ml = any(runtime.runtime == "onnxruntime-coreml" for runtime in delivery.runtimes)
    return render(
        "ios/OnnxModel.swift",
        {
            **_shared(request, artifact),
            "file": naming.swift_string(artifact.path.name),
            "provider_doc": "What Core ML takes runs there, in ML Program format; the rest runs on the CPU."
            if uses_core_ml
            else "Runs on the CPU: the Core ML provider would split a quantised or dynamic graph into "
            "pieces.",
            "provider_setup": _CORE_ML_SETUP
            if uses_core_ml
            else "        try settings.setGraphOptimizationLevel(.all)",
            "parameters": ", ".join([*parameters, *(f"{name}: Int" for name in sizes.values())]),
            "feeds": ",\n".join(feeds),
            "output_names": ", ".join(naming.swift_string(spec.name) for spec in artifact.outputs),
            "results": ",\n".join(results),
        },
    )


_CORE_ML_SETUP = """\
        let coreML = ORTCoreMLExecutionProviderOptions()
        coreML.createMLProgram = true
        coreML.onlyAllowStaticInputShapes = true
        try settings.appendCoreMLExecutionProvider(with: coreML)"""


def _dimension(axis: int | str, sizes: Mapping[str, str]) -> str:
    return f"NSNumber(value: {sizes[axis]})" if isinstance(axis, str) else str(axis)


def _preprocessing(request: BundleRequest) -> str:
    contract = request.card.preprocess
    element, cast = _CASTS[contract["dtype"]]
    height, width = contract["size"]
    return render(
        "ios/Preprocessing.swift",
        {
            "title": naming.comment(f"{request.card.name} {request.card.version}"),
            "type": preprocessing_type(request),
            "width": str(width),
            "height": str(height),
            **{key: str(contract[key]) for key in ("color", "layout", "resize", "fit", "pad")},
            "scale": repr(float(contract["scale"])),
            "mean": ", ".join(repr(float(value)) for value in contract["mean"]),
            "std": ", ".join(repr(float(value)) for value in contract["std"]),
            "element": element,
            "cast": cast,
        },
    )


def _manifest(request: BundleRequest, minimum: str) -> str:
    uses_onnxruntime = any(
        delivery.artifact.spec.format is not Format.MLPACKAGE for delivery in request.deliveries
    )
    name = naming.type_name(request.card.name)
    return render(
        "ios/Package.swift",
        {
            "title": naming.comment(f"{request.card.name} {request.card.version}"),
            "type": name,
            "package": naming.swift_string(name),
            "platform": naming.swift_string(minimum if "." in minimum else f"{minimum}.0"),
            "dependencies": f"        {_ONNXRUNTIME_PACKAGE}" if uses_onnxruntime else "",
            "products": f"                {_ONNXRUNTIME_PRODUCT}" if uses_onnxruntime else "",
            "resources": ",\n".join(
                f"                .copy({naming.swift_string(f'models/{delivery.artifact.path.name}')})"
                for delivery in request.deliveries
            ),
        },
    )

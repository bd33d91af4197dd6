"""Swift for one artifact: a class with typed inputs and outputs around Core ML or onnxruntime.

Pure: from an artifact to a text. Names, shapes and types come from the artifact; the code itself lies in
`templates/ios/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.artifacts import Artifact, ArtifactSpec, Format, TensorSpec
from exporter.errors import UnsupportedError
from targets import naming
from targets.base import BundleRequest, Delivery, ModelCard
from targets.documents import render

RUNTIME_WORDS: Mapping[Format, str] = {Format.ONNX: "Onnx", Format.ORT: "Ort", Format.MLPACKAGE: "CoreML"}

CASTS: Mapping[str, tuple[str, str]] = {
    "float32": ("Float", "Float(value)"),
    "uint8": ("UInt8", "UInt8(max(0, min(255, value.rounded(.toNearestOrEven))))"),
    "int8": ("Int8", "Int8(max(-128, min(127, value.rounded(.toNearestOrEven))))"),
}
"""For each dtype that preprocessing makes in Swift: the element, and the expression that makes one of a `value`."""

_CORE_ML_SETUP = """\
        let coreML = ORTCoreMLExecutionProviderOptions()
        coreML.createMLProgram = true
        coreML.onlyAllowStaticInputShapes = true
        try settings.appendCoreMLExecutionProvider(with: coreML)"""


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


@dataclass(frozen=True, slots=True)
class Signature:
    """How Swift calls a model: names of inputs, of the sizes of named axes, and of outputs, all different where they meet.

    `axes` gives the parameter for each named axis; `elements` are the Swift types of the inputs.
    """

    inputs: tuple[str, ...]
    axes: Mapping[str, str]
    outputs: tuple[str, ...]
    elements: tuple[str, ...]


def type_of(name: str, spec: ArtifactSpec) -> str:
    """Return the Swift class of one artifact of model `name`, and its module, for example `DigitsFloat16CoreML`."""
    return naming.type_name(name, spec.stem_suffix, RUNTIME_WORDS[spec.format])


def signature_of(artifact: Artifact) -> Signature:
    """Return how the class of `artifact` is called; `UnsupportedError` for a dtype that its runtime does not take."""
    # Core ML packages have fixed shapes: no axis is left to name.
    axes = naming.axis_names(spec.shape for spec in artifact.inputs)
    names = naming.value_names([*(spec.name for spec in artifact.inputs), *axes])
    count = len(artifact.inputs)
    return Signature(
        inputs=tuple(names[:count]),
        axes=dict(zip(axes, names[count:], strict=True)),
        outputs=tuple(naming.value_names(spec.name for spec in artifact.outputs)),
        elements=tuple(_element(artifact, spec).swift for spec in artifact.inputs),
    )


def source_of(request: BundleRequest, delivery: Delivery, imports: str) -> str:
    """Return the Swift file of one artifact, which starts with `imports`.

    Raises `UnsupportedError` for a tensor whose dtype the runtime's Swift interface does not take.
    """
    if delivery.artifact.spec.format is Format.MLPACKAGE:
        return _core_ml_source(request, delivery.artifact, imports)
    return _onnx_source(request, delivery, imports)


def score_output(card: ModelCard, artifact: Artifact) -> str | None:
    """Return the output that holds one score for each class of the picture the model takes, or `None`.

    It does where preprocessing makes the only input and the only output is a row of real numbers, one for each label.
    """
    contract = card.preprocess
    if contract.get("dtype") not in CASTS or len(artifact.inputs) != 1 or len(artifact.outputs) != 1:
        return None
    (taken,), (given,) = artifact.inputs, artifact.outputs
    (height, width), channels = contract["size"], 1 if contract["color"] == "L" else 3
    made = (channels, height, width) if contract["layout"] == "NCHW" else (height, width, channels)
    classes = _one(given.shape)
    is_row = len(classes) == 1 and (classes[0] == len(card.labels) or (not card.labels and classes[0] > 1))
    if (*taken.shape[1:],) != made or taken.shape[0] not in {1, *naming.axis_names([taken.shape])}:
        return None
    if taken.dtype != contract["dtype"] or given.dtype not in {"float32", "float16", "float64"} or not is_row:
        return None
    return naming.value_names([given.name])[0]


def _one(shape: Sequence[int | str]) -> list[int]:
    """Return the sides of a shape that are not 1, a named axis counting as 1."""
    return [side for side in shape if isinstance(side, int) and side != 1]


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


def _shared(request: BundleRequest, artifact: Artifact, imports: str) -> dict[str, str]:
    card, called = request.card, signature_of(artifact)
    fields = [
        f"        public let {name}: [{_answer_type(artifact, spec)}]"
        for name, spec in zip(called.outputs, artifact.outputs, strict=True)
    ]
    shapes = ", ".join(
        f"`{name}` is {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        for name, spec in zip(called.inputs, artifact.inputs, strict=True)
    )
    is_scored = score_output(card, artifact) is not None
    drawing = "#if canImport(CoreGraphics)\nimport CoreGraphics\n#endif\n" if is_scored else ""
    parameters = [
        *(f"{name}: [{kind}]" for name, kind in zip(called.inputs, called.elements, strict=True)),
        *(f"{name}: Int" for name in called.axes.values()),
    ]
    return {
        "title": naming.comment(f"{card.name} {card.version}"),
        "prefix": naming.type_name(card.name),
        "artifact": str(artifact.spec),
        "file_comment": naming.comment(artifact.path.name),
        "type": type_of(card.name, artifact.spec),
        "sha256": artifact.sha256,
        "imports": f"{drawing}{imports}",
        "output_fields": "\n".join(fields),
        "run_doc": naming.comment(f"{shapes}."),
        "parameters": ", ".join(parameters),
        "classify": _classify(request, artifact, called),
    }


def _classify(request: BundleRequest, artifact: Artifact, called: Signature) -> str:
    output = score_output(request.card, artifact)
    if output is None:
        return ""
    arguments = ", ".join([f"{called.inputs[0]}: pixels", *(f"{axis}: 1" for axis in called.axes.values())])
    prefix = naming.type_name(request.card.name)
    return render("ios/Classify.swift", {"prefix": prefix, "arguments": arguments, "output": output})


def _answer_type(artifact: Artifact, spec: TensorSpec) -> str:
    element = _element(artifact, spec)
    # Core ML's numbers come out widened; a float16 answer is read as Float.
    return "Float" if element.swift == "Float16" else element.swift


def _core_ml_source(request: BundleRequest, artifact: Artifact, imports: str) -> str:
    called = signature_of(artifact)
    feeds = [
        f"            {naming.swift_string(spec.name)}: try Self.tensor({naming.swift_string(spec.name)}, {name}, "
        f"[{', '.join(map(str, spec.shape))}], {_element(artifact, spec).core_ml})"
        for name, spec in zip(called.inputs, artifact.inputs, strict=True)
    ]
    results = [
        f"            {name}: try Self.numbers(results, {naming.swift_string(spec.name)})"
        f".map {{ $0.{_element(artifact, spec).from_number} }}"
        for name, spec in zip(called.outputs, artifact.outputs, strict=True)
    ]
    return render(
        "ios/CoreMLModel.swift",
        {
            **_shared(request, artifact, imports),
            "resource": naming.swift_string(artifact.path.name.removesuffix(".mlpackage")),
            "feeds": ",\n".join(feeds),
            "results": ",\n".join(results),
        },
    )


def _onnx_source(request: BundleRequest, delivery: Delivery, imports: str) -> str:
    artifact = delivery.artifact
    called = signature_of(artifact)
    feeds = [
        f"            {naming.swift_string(spec.name)}: try Self.tensor({naming.swift_string(spec.name)}, {name}, "
        f"[{', '.join(_dimension(axis, called.axes) for axis in spec.shape)}], {_element(artifact, spec).onnx})"
        for name, spec in zip(called.inputs, artifact.inputs, strict=True)
    ]
    results = [
        f"            {name}: try Self.values(results, {naming.swift_string(spec.name)}, "
        f"as: {_element(artifact, spec).swift}.self)"
        for name, spec in zip(called.outputs, artifact.outputs, strict=True)
    ]
    uses_core_ml = any(runtime.runtime == "onnxruntime-coreml" for runtime in delivery.runtimes)
    return render(
        "ios/OnnxModel.swift",
        {
            **_shared(request, artifact, imports),
            "file": naming.swift_string(artifact.path.name),
            "provider_doc": "What Core ML takes runs there, in ML Program format; the rest runs on the CPU."
            if uses_core_ml
            else "Runs on the CPU: the Core ML provider would split a quantised or dynamic graph into "
            "pieces.",
            "provider_setup": _CORE_ML_SETUP
            if uses_core_ml
            else "        try settings.setGraphOptimizationLevel(.all)",
            "feeds": ",\n".join(feeds),
            "output_names": ", ".join(naming.swift_string(spec.name) for spec in artifact.outputs),
            "results": ",\n".join(results),
        },
    )


def _dimension(axis: int | str, sizes: Mapping[str, str]) -> str:
    return f"NSNumber(value: {sizes[axis]})" if isinstance(axis, str) else str(axis)

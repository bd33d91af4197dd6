"""Swift for one artifact: a class with typed inputs and outputs around Core ML or onnxruntime.

Pure: from an artifact to a text. Names and types come from the artifact; the code itself lies in `templates/ios/`, which
reads the dataclasses of this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.artifacts import Artifact, ArtifactSpec, Format, TensorSpec
from exporter.errors import UnsupportedError
from targets import naming
from targets.base import Delivery, ModelCard
from targets.documents import render

RUNTIME_WORDS: Mapping[Format, str] = {Format.ONNX: "Onnx", Format.ORT: "Ort", Format.MLPACKAGE: "CoreML"}

PREPARED: Mapping[str, tuple[str, tuple[int, int] | None]] = {
    "float32": ("Float", None),
    "uint8": ("UInt8", (0, 255)),
    "int8": ("Int8", (-128, 127)),
}
"""For each dtype that preprocessing makes in Swift: the element, and the limits of a rounded one."""


@dataclass(frozen=True, slots=True)
class Element:
    """How a dtype looks in Swift: its element type, as an input and as an answer.

    `core_ml` and `onnx` are the runtimes' types for it, empty where one does not take it; `from_number` reads one from an
    `NSNumber`.
    """

    swift: str
    answered: str
    core_ml: str
    onnx: str
    from_number: str


# Core ML arrays hold float16, float32, float64 and int32 only; their numbers come out widened, a float16 as Float.
_ELEMENTS: Mapping[str, Element] = {
    "float32": Element("Float", "Float", ".float32", ".float", "floatValue"),
    "float16": Element("Float16", "Float", ".float16", "", "floatValue"),
    "float64": Element("Double", "Double", ".double", "", "doubleValue"),
    "int32": Element("Int32", "Int32", ".int32", ".int32", "int32Value"),
    "int64": Element("Int64", "Int64", "", ".int64", "int64Value"),
    "int8": Element("Int8", "Int8", "", ".int8", "int8Value"),
    "uint8": Element("UInt8", "UInt8", "", ".uInt8", "uint8Value"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output in Swift: the identifier that stands for it, and what its elements are."""

    spec: TensorSpec
    variable: str
    element: Element


@dataclass(frozen=True, slots=True)
class Axis:
    """The parameter for the size of a named axis, and where a sample says it: dimension `place` of the input `owner`."""

    variable: str
    owner: str
    place: int


@dataclass(frozen=True, slots=True)
class SwiftModel:
    """One artifact in Swift: its class, and how that is called. Names are all different where they meet.

    `axes` has the named axes in order of appearance; `score` is the output that `score_output` finds; `uses_core_ml` says
    whether onnxruntime hands what it can to Core ML.
    """

    artifact: Artifact
    type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: Mapping[str, Axis]
    score: str | None
    uses_core_ml: bool


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What `CoreMLModel.swift` and `OnnxModel.swift` read."""

    card: ModelCard
    prefix: str
    contract_module: str
    model: SwiftModel


def type_of(name: str, spec: ArtifactSpec) -> str:
    """Return the Swift class of one artifact of model `name`, and its module, for example `DigitsFloat16CoreML`."""
    return naming.type_name(name, spec.stem_suffix, RUNTIME_WORDS[spec.format])


def model_of(card: ModelCard, delivery: Delivery) -> SwiftModel:
    """Return what one artifact is in Swift.

    Raises `UnsupportedError` for a tensor whose dtype the runtime's Swift interface does not take.
    """
    artifact = delivery.artifact
    # Core ML packages have fixed shapes: no axis is left to name.
    axes = naming.axis_names(spec.shape for spec in artifact.inputs)
    names = naming.value_names([*(spec.name for spec in artifact.inputs), *axes])
    count = len(artifact.inputs)
    return SwiftModel(
        artifact=artifact,
        type=type_of(card.name, artifact.spec),
        inputs=_tensors(artifact, artifact.inputs, names[:count]),
        outputs=_tensors(
            artifact, artifact.outputs, naming.value_names(spec.name for spec in artifact.outputs)
        ),
        axes={axis: _axis(artifact, axis, name) for axis, name in zip(axes, names[count:], strict=True)},
        score=score_output(card, artifact),
        uses_core_ml=any(runtime.runtime == "onnxruntime-coreml" for runtime in delivery.runtimes),
    )


def source_of(card: ModelCard, model: SwiftModel, contract_module: str) -> str:
    """Return the Swift file of one artifact, which hands on `contract_module`."""
    template = "CoreMLModel" if model.artifact.spec.format is Format.MLPACKAGE else "OnnxModel"
    facts = ModelFile(card, naming.type_name(card.name), contract_module, model)
    return render(f"ios/{template}.swift", facts)


def score_output(card: ModelCard, artifact: Artifact) -> str | None:
    """Return the output that holds one score for each class of the picture the model takes, or `None`.

    It does where preprocessing makes the only input and the only output is a row of real numbers, one for each label.
    """
    contract = card.preprocess
    if contract.get("dtype") not in PREPARED or len(artifact.inputs) != 1 or len(artifact.outputs) != 1:
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


def _tensors(artifact: Artifact, specs: Sequence[TensorSpec], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(spec, name, _element(artifact, spec)) for spec, name in zip(specs, names, strict=True)
    )


def _axis(artifact: Artifact, axis: str, variable: str) -> Axis:
    owner = next(spec for spec in artifact.inputs if axis in spec.shape)
    return Axis(variable, owner.name, owner.shape.index(axis))


def _element(artifact: Artifact, spec: TensorSpec) -> Element:
    element = _ELEMENTS.get(spec.dtype)
    takes = element and (element.core_ml if artifact.spec.format is Format.MLPACKAGE else element.onnx)
    if element is None or not takes:
        raise UnsupportedError(
            f"{artifact.path.name}: tensor {spec.name!r} is {spec.dtype}, which its Swift interface does "
            f"not take",
            fix="give the model a float32 or int32 tensor there, or leave this artifact out of [targets.ios]",
        )
    return element

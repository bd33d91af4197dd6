"""iOS: Core ML, and onnxruntime on CPU and through its Core ML provider.

What a system version runs is data: block-wise int4 weights exist from iOS 18 on, so `capabilities`
depends on the `minimum` that the recipe names.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from pydantic import ValidationError, field_validator

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import IntegrityError, UnsupportedError
from targets import documents, runtimes
from targets.base import BundleRequest, Capabilities, Exclusion, RuntimeCapability, TargetOptions
from targets.ios import swift, swiftpm
from targets.packaging.base import Package, PackRequest

OLDEST_MINIMUM = (16, 0)
INT4_MINIMUM = (18, 0)

_CORE_ML = RuntimeCapability(
    runtime="coreml",
    format=Format.MLPACKAGE,
    schemes=frozenset({"float16", "float32", "weight_only_wi8"}),
    needs_fixed_shapes=True,
    note="ML Program; the Neural Engine computes in float16; int8 weights per channel from iOS 16 on",
)
_EXCLUSIONS = (
    Exclusion(
        Format.MLPACKAGE,
        frozenset({"static_wi8_ai8", "static_wi8_ai8_u"}),
        "activation ranges of a Core ML package are calibrated by running it, which needs macOS",
        is_permanent=False,
    ),
    Exclusion(
        Format.MLPACKAGE,
        frozenset({"dynamic_wi8_ai8"}),
        "Core ML does not quantise activations at run time; take mlpackage:weight_only_wi8",
    ),
    Exclusion(Format.ONNX, frozenset({"float16"}), f"{runtimes.FLOAT16_ON_CPU}; take mlpackage:float16"),
    Exclusion(Format.ORT, frozenset({"float16"}), f"{runtimes.FLOAT16_ON_CPU}; take mlpackage:float16"),
    runtimes.unsigned_on_arm64(Format.ONNX),
    runtimes.unsigned_on_arm64(Format.ORT),
    runtimes.UNSIGNED_TFLITE,
    Exclusion(
        Format.TFLITE,
        runtimes.ALL_SCHEMES - runtimes.UNSIGNED_TFLITE.schemes,
        "LiteRT runs on iOS, but this target does not pack it; take mlpackage or onnx",
        is_permanent=False,
    ),
)
_NO_INT4 = Exclusion(
    Format.MLPACKAGE,
    runtimes.INT4_SCHEMES,
    'int4 weights in blocks need iOS 18; set minimum = "18" in [targets.ios]',
    is_permanent=False,
)
_ONNXRUNTIME = (
    runtimes.ONNXRUNTIME_COREML,
    runtimes.onnxruntime_cpu(Format.ONNX),
    runtimes.onnxruntime_cpu(Format.ORT),
)

CAPABILITIES_16 = Capabilities(
    version="1", runtimes=(_CORE_ML, *_ONNXRUNTIME), exclusions=(*_EXCLUSIONS, _NO_INT4)
)
CAPABILITIES_18 = Capabilities(
    version="1",
    runtimes=(
        dataclasses.replace(_CORE_ML, schemes=_CORE_ML.schemes | runtimes.INT4_SCHEMES),
        *_ONNXRUNTIME,
    ),
    exclusions=_EXCLUSIONS,
)

DEFAULT_ARTIFACTS = tuple(
    ArtifactSpec.parse(text)
    for text in (
        "mlpackage:float16",
        "mlpackage:weight_only_wi8",
        "onnx:float32@fixed",
        "onnx:static_wi8_ai8",
    )
)


class IosOptions(TargetOptions):
    """The keys of `[targets.ios]`; `minimum` is the oldest iOS that must run the bundle ("17", "17.4")."""

    minimum: str = "17"

    @field_validator("minimum")
    @classmethod
    def _minimum_is_a_supported_version(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]?(\.[0-9]{1,2})?", value):
            raise ValueError('minimum is an iOS version in quotes, like "17" or "17.4"')
        if _version(value) < OLDEST_MINIMUM:
            raise ValueError("minimum must be 16 or newer: int8 weights in ML Programs start there")
        return value

    @property
    def minimum_version(self) -> tuple[int, int]:
        """Major and minor number of `minimum`."""
        return _version(self.minimum)


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


@dataclass(frozen=True, slots=True)
class Ios:
    """The iOS target: Swift sources beside the models, and Swift packages made of both."""

    name: str = "ios"
    summary: str = "iPhones and iPads: Core ML packages, and onnxruntime (CPU, Core ML provider)"
    options_model: type[TargetOptions] = IosOptions

    def capabilities(self, options: TargetOptions) -> Capabilities:
        """Return what iOS from `options.minimum` on runs."""
        return CAPABILITIES_18 if _ios(options).minimum_version >= INT4_MINIMUM else CAPABILITIES_16

    def default_artifacts(self, options: TargetOptions) -> tuple[ArtifactSpec, ...]:
        """Return two Core ML packages, and ONNX as float (Core ML provider) and as int8 (CPU)."""
        del options
        return DEFAULT_ARTIFACTS

    def bundle(self, request: BundleRequest) -> None:
        """Write README.md, models.json, preprocess.json and `integration/` (Swift)."""
        documents.write_texts(request.destination, swift.sources(request))
        documents.write_common(
            request,
            platform="iOS",
            facts=_facts(request, _ios(request.options)),
            usage=swift.usage(request),
        )

    def pack(self, request: PackRequest) -> tuple[Package, ...]:
        """Write one Swift package for Core ML and one for onnxruntime, of what the bundle has for each.

        Raises `IntegrityError` for a bundle that this version did not write, `UnsupportedError` for a version that no git
        tag can spell.
        """
        try:
            options = IosOptions.model_validate(dict(request.bundle.options))
        except ValidationError as error:
            raise IntegrityError(
                f"{request.bundle.folder} was built with options that the ios target does not have: "
                f"{error.errors()[0]['msg']}",
                fix="build the bundle again with this version",
            ) from error
        return swiftpm.pack(request.bundle, request.destination, minimum=options.minimum)


def _ios(options: TargetOptions) -> IosOptions:
    if not isinstance(options, IosOptions):
        raise UnsupportedError(
            f"the ios target was given {type(options).__name__}",
            fix="make the options with its options_model",
        )
    return options


def _facts(request: BundleRequest, options: IosOptions) -> tuple[str, ...]:
    """Return the sentences that an iOS developer must know about the formats in this bundle."""
    formats = {delivery.artifact.spec.format for delivery in request.deliveries}
    facts = [f"Made for iOS {options.minimum} and newer."]
    if Format.MLPACKAGE in formats:
        facts += [
            "A `.mlpackage` is a folder. Xcode compiles it when it is a source of an app target; from a "
            "Swift package's `.copy` resource compile it once on the device with "
            "`MLModel.compileModel(at:)`.",
            "Core ML cannot run where these files were made (Linux): what was checked is the structure of "
            "the "
            "package and its de-quantised weights, as `evidence.json` says. Replay the golden vectors on "
            "a device.",
        ]
    if formats & {Format.ONNX, Format.ORT}:
        facts += [
            documents.ONNXRUNTIME_LAG,
            "Give onnxruntime's Core ML provider the float32 file, in ML Program format: a quantised graph "
            "falls apart into many pieces that move between processors. The int8 file is for the CPU "
            "provider.",
        ]
    facts.append("Depend on Swift packages, not on CocoaPods: its trunk is read-only from December 2026.")
    return tuple(facts)


TARGET = Ios()

"""Android: onnxruntime on CPU, XNNPACK and the Snapdragon NPU; LiteRT on CPU and GPU.

What phones run is `CAPABILITIES`; what an app developer receives is written by `Android.bundle`.
NNAPI is deliberately absent: it is deprecated since Android 15 and rejects signed int8 activations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ValidationError, field_validator

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import IntegrityError, UnsupportedError
from exporter.system.files import write_bytes
from targets import documents, runtimes
from targets.android import kotlin
from targets.android import packages as android
from targets.android.aar import classes_jar
from targets.android.model import GROUP_RULE, KEYWORDS
from targets.base import BundleRequest, Capabilities, Exclusion, TargetOptions
from targets.packaging.base import Package, PackRequest

OLDEST_SDK, NEWEST_SDK = 24, 99

CAPABILITIES = Capabilities(
    version="1",
    runtimes=(
        runtimes.onnxruntime_cpu(Format.ONNX),
        runtimes.onnxruntime_xnnpack(Format.ONNX),
        runtimes.ONNXRUNTIME_QNN,
        runtimes.onnxruntime_cpu(Format.ORT),
        runtimes.onnxruntime_xnnpack(Format.ORT),
        runtimes.LITERT_GPU,
        runtimes.LITERT_XNNPACK,
    ),
    exclusions=(
        Exclusion(
            Format.ONNX,
            frozenset({"float16"}),
            f"{runtimes.FLOAT16_ON_CPU}; take tflite:float16 for the GPU",
        ),
        Exclusion(
            Format.ORT,
            frozenset({"float16"}),
            f"{runtimes.FLOAT16_ON_CPU}; take tflite:float16 for the GPU",
        ),
        Exclusion(
            Format.ORT,
            frozenset({"static_wi8_ai8_u"}),
            "unsigned activations are for the Snapdragon NPU, which takes onnx:static_wi8_ai8_u@fixed",
        ),
        runtimes.UNSIGNED_TFLITE,
        runtimes.no_core_ml("Android"),
    ),
)

DEFAULT_ARTIFACTS = tuple(
    ArtifactSpec.parse(text)
    for text in (
        "onnx:static_wi8_ai8@fixed",
        "ort:static_wi8_ai8@fixed",
        "tflite:static_wi8_ai8",
        "tflite:float16",
    )
)


class AndroidOptions(TargetOptions):
    """The keys of `[targets.android]`.

    `group` is the Maven group of the packages and the start of their Java package; `minimum_sdk` is the API level of the
    oldest Android that may use them.
    """

    group: str = "edge.models"
    minimum_sdk: int = OLDEST_SDK

    @field_validator("group")
    @classmethod
    def _group_is_a_java_package(cls, value: str) -> str:
        if len(value) > 100 or not re.fullmatch(GROUP_RULE, value) or KEYWORDS & set(value.split(".")):
            raise ValueError('group is a Java package in lower case, like "com.example.models"')
        return value

    @field_validator("minimum_sdk")
    @classmethod
    def _minimum_sdk_is_supported(cls, value: int) -> int:
        if not OLDEST_SDK <= value <= NEWEST_SDK:
            raise ValueError(
                f"minimum_sdk is an API level from {OLDEST_SDK} (Android 7): the runtimes start there"
            )
        return value


@dataclass(frozen=True, slots=True)
class Android:
    """The Android target: Kotlin sources and a Gradle snippet beside the models, and AARs made of both."""

    name: str = "android"
    summary: str = "Android phones: onnxruntime (CPU, XNNPACK, Snapdragon NPU) and LiteRT (CPU, GPU)"
    options_model: type[TargetOptions] = AndroidOptions

    def capabilities(self, options: TargetOptions) -> Capabilities:
        """Return what Android phones run; no option changes it."""
        del options
        return CAPABILITIES

    def default_artifacts(self, options: TargetOptions) -> tuple[ArtifactSpec, ...]:
        """Return int8 for the CPU in three file formats and float16 for the GPU."""
        del options
        return DEFAULT_ARTIFACTS

    def bundle(self, request: BundleRequest) -> None:
        """Write README.md, models.json, preprocess.json and `integration/` (Kotlin, jars, Gradle)."""
        models = kotlin.models(request, _android(request.options).group)
        documents.write_texts(request.destination, kotlin.sources(models))
        for model in models:
            path = request.destination / kotlin.library_path(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, classes_jar(model))
        documents.write_common(request, platform="Android", facts=_facts(request), usage=kotlin.usage(models))

    def pack(self, request: PackRequest) -> tuple[Package, ...]:
        """Write an AAR for every artifact and its golden vectors as a jar, as a Maven repository.

        Raises `IntegrityError` for a bundle whose options or files this version does not know, `UnsupportedError` for what
        no AAR can hold and for a version that Maven takes for a snapshot.
        """
        try:
            options = AndroidOptions.model_validate(dict(request.bundle.options))
        except ValidationError as error:
            raise IntegrityError(
                f"{request.bundle.folder} was built with options that the android target does not have: "
                f"{error.errors()[0]['msg']}",
                fix="build the bundle again with this version",
            ) from error
        return android.pack(
            request.bundle, request.destination, group=options.group, minimum_sdk=options.minimum_sdk
        )


def _android(options: TargetOptions) -> AndroidOptions:
    if not isinstance(options, AndroidOptions):
        raise UnsupportedError(
            f"the android target was given {type(options).__name__}",
            fix="make the options with its options_model",
        )
    return options


def _facts(request: BundleRequest) -> tuple[str, ...]:
    """Return the sentences that an Android developer must know about the formats in this bundle."""
    formats = {delivery.artifact.spec.format for delivery in request.deliveries}
    schemes = {
        (delivery.artifact.spec.format, str(delivery.artifact.spec.scheme)) for delivery in request.deliveries
    }
    facts = []
    if formats & {Format.ONNX, Format.ORT}:
        facts += [
            "Gradle compresses `.onnx` and `.ort` assets unless the *app's* own build file says "
            '`androidResources { noCompress += listOf("onnx", "ort") }`; a library cannot say it for the '
            "app. "
            "A compressed model is copied whole into memory before it loads. `.tflite` is stored "
            "uncompressed already.",
            documents.ONNXRUNTIME_LAG,
            "Do not add NNAPI: it is deprecated since Android 15 and rejects signed int8 activations.",
            "`onnxruntime-extensions-android` 0.13 holds native libraries that are not aligned to 16 KB "
            "pages, "
            "which Google Play requires: keep pre- and post-processing in the app.",
        ]
    if Format.ORT in formats:
        facts.append(
            "`.ort` pays only with a reduced onnxruntime: build one from the `required_operators.config` "
            "that lies beside the model; with the stock library take the `.onnx`."
        )
    if (Format.ONNX, "static_wi8_ai8_u") in schemes:
        facts.append(
            "The file with unsigned activations (`static_wi8_ai8_u`) is for the Snapdragon NPU through "
            "`onnxruntime-android-qnn`; XNNPACK refuses it."
        )
    if Format.TFLITE in formats:
        facts += [
            "The GPU delegate takes float files only: give it float16 (or float32), never int8.",
            "An int8 `.tflite` can be slower than its float original: measure both on the phone, ship "
            "what wins.",
        ]
    facts.append("Google Play allows 500 MB in the base module; larger models go into an AI pack (1.5 GB).")
    return tuple(facts)


TARGET = Android()

"""What the generated Kotlin of an artifact is called, and where it lies in a bundle."""

from __future__ import annotations

from exporter.artifacts import Format
from targets import naming
from targets.android.model import AndroidModel

FOLDER = "integration/kotlin"
TEST_FOLDER = "integration/kotlin-test"
ANDROID_TEST_FOLDER = "integration/kotlin-android-test"
LIBRARY_FOLDER = "integration/libs"
GRADLE_FILE = "integration/build.gradle.kts"


def type_of(model: AndroidModel) -> str:
    """Return the Kotlin class name of one artifact, for example `DigitsStaticWi8Ai8Onnx`."""
    runtime = {Format.ONNX: "Onnx", Format.ORT: "Ort", Format.TFLITE: "LiteRt"}[model.spec.format]
    return naming.type_name(model.name, model.spec.stem_suffix, runtime)


def source_path(model: AndroidModel) -> str:
    """Return the path of the artifact's Kotlin in a bundle."""
    return f"{FOLDER}/{type_of(model)}.kt"

"""Generated Kotlin: complete, not to be broken by names, and compiled and run where a compiler is installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from android_ground import (
    JUNIT,
    fails_or_not,
    interfaces,
    jars_of,
    make_bundle,
    models_of,
    needs_java,
    needs_junit,
    needs_kotlin,
    pack,
    run,
    write_recorded,
)

from calibration.preprocess import Preprocess
from exporter.artifacts import TensorSpec
from exporter.errors import UnsupportedError
from targets.android import kotlin, kotlin_names
from targets.android.model import AndroidModel

NASTY = 'a$b"c\\d\n${e}'
PICTURES = Preprocess(size=(5, 4), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def echo(
    *specs: tuple[str, str, tuple[int | str, ...]],
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of a model that gives back what it takes."""
    tensors = tuple(TensorSpec(*spec) for spec in specs)
    return tensors, tensors


EVERY_DTYPE = tuple(
    (f"t_{dtype}", dtype, (1, 3))
    for dtype in ("float32", "float64", "int64", "int32", "int16", "float16", "int8", "uint8", "bool")
)
IMAGE = (("image", "float32", (1, 3, 5, 4)),)
SCORES = (TensorSpec("logits", "float32", (1, 2)),)
Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]

# Bundles that reach every branch of the templates: name, artifact, tensors, contract.
BUNDLES: tuple[tuple[str, str, Signature, Preprocess | None], ...] = (
    ("digits", "onnx:float32", echo(("image", "float32", ("batch", 3))), None),
    ("digits", "onnx:static_wi8_ai8@fixed", echo(*EVERY_DTYPE), None),
    ("digits", "onnx:static_wi8_ai8_u@fixed", (echo(*IMAGE)[0], SCORES), PICTURES),
    (
        "digits",
        "ort:dynamic_wi8_ai8",
        echo(("ids", "int64", ("batch", "length")), ("mask", "int64", ("batch", "length"))),
        None,
    ),
    ("digits", "tflite:float16", (echo(*IMAGE)[0], SCORES), PICTURES),
    ("digits", "tflite:static_wi8_ai8", echo(*EVERY_DTYPE), None),
    (
        "halves",
        "onnx:float32@fixed",
        (echo(("image", "float16", (1, 3, 5, 4)))[0], echo(("mask", "uint8", (1, 5, 4)))[0]),
        Preprocess(size=(5, 4), dtype="float16"),
    ),
    (
        "3d.in-class_net",
        "onnx:float32@fixed",
        echo(
            (NASTY, "float32", (1, 3)),
            ("fun", "float32", (1, 2)),
            ("in.put", "int64", (1,)),
            ("in_put", "int64", (1,)),
        ),
        None,
    ),
    ("3d.in-class_net", "tflite:float32", echo((NASTY, "float32", (1, 3)), ("it", "float32", (1, 2))), None),
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every bundle of `BUNDLES`, written by the target."""
    folder = tmp_path_factory.mktemp("kotlin")
    return [
        make_bundle(
            folder / f"{number}",
            name=name,
            artifacts=[text],
            signature=signature,
            contract=contract,
            labels=("no", "yes"),
        )
        for number, (name, text, signature, contract) in enumerate(BUNDLES)
    ]


def models(bundles: Sequence[Path], *names: str) -> list[AndroidModel]:
    """Return the models of the bundles with these artifacts, or all."""
    return [
        model for bundle in bundles for model in models_of(bundle) if not names or str(model.spec) in names
    ]


def test_leaves_no_placeholder_and_closes_every_bracket(bundles: list[Path]) -> None:
    for model in models(bundles):
        for path, text in kotlin.sources([model]).items():
            assert "%%" not in text and "<%" not in text, path
            bare = re.sub(r'"(\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', "", text, flags=re.DOTALL)
            for opening, closing in ("()", "[]", "{}"):
                assert bare.count(opening) == bare.count(closing), (path, opening)


def test_names_types_after_model_scheme_and_runtime(bundles: list[Path]) -> None:
    files = kotlin.sources([model for model in models(bundles) if model.name == "digits"])

    assert sorted(files) == [
        "integration/build.gradle.kts",
        "integration/kotlin-android-test/DigitsDynamicWi8Ai8OrtGoldenTest.kt",
        "integration/kotlin-android-test/DigitsFloat16LiteRtGoldenTest.kt",
        "integration/kotlin-android-test/DigitsFloat32OnnxGoldenTest.kt",
        "integration/kotlin-android-test/DigitsStaticWi8Ai8FixedOnnxGoldenTest.kt",
        "integration/kotlin-android-test/DigitsStaticWi8Ai8LiteRtGoldenTest.kt",
        "integration/kotlin-android-test/DigitsStaticWi8Ai8UFixedOnnxGoldenTest.kt",
        "integration/kotlin-test/DigitsFloat16LiteRtPicturesTest.kt",
        "integration/kotlin-test/DigitsStaticWi8Ai8UFixedOnnxPicturesTest.kt",
        "integration/kotlin/DigitsDynamicWi8Ai8Ort.kt",
        "integration/kotlin/DigitsFloat16LiteRt.kt",
        "integration/kotlin/DigitsFloat32Onnx.kt",
        "integration/kotlin/DigitsStaticWi8Ai8FixedOnnx.kt",
        "integration/kotlin/DigitsStaticWi8Ai8LiteRt.kt",
        "integration/kotlin/DigitsStaticWi8Ai8UFixedOnnx.kt",
    ]


def test_fills_in_names_shapes_and_axes(bundles: list[Path]) -> None:
    (model,) = models(bundles, "ort:dynamic_wi8_ai8")
    text = kotlin.sources([model])["integration/kotlin/DigitsDynamicWi8Ai8Ort.kt"]

    assert "fun run(ids: LongArray, mask: LongArray, batch: Long, length: Long): Outputs" in text
    assert 'mapOf("ids" to ids, "mask" to mask), mapOf("batch" to batch, "length" to length))' in text
    assert 'const val ASSET: String = "edge/digits/digits-dynamic_wi8_ai8.ort"' in text


def test_user_text_cannot_leave_its_literal(bundles: list[Path]) -> None:
    model = next(model for model in models(bundles, "onnx:float32@fixed") if model.name != "halves")
    text = kotlin.sources([model])["integration/kotlin/Model3dInClassNetFloat32FixedOnnx.kt"]

    assert r'mapOf("a\$b\"c\\d\u000A\${e}" to aBCDE, ' in text
    assert "package edge.models.Model_3d___in_class__net.float32_fixed_onnx\n" in text
    assert "run(aBCDE: FloatArray, funValue: FloatArray, inPut: LongArray, inPut2: LongArray)" in text


@pytest.mark.parametrize(
    ("artifact", "wanted"),
    [
        ("onnx:float32", "brings onnxruntime-android 1.20.0"),
        ("tflite:static_wi8_ai8", "brings litert 1.0.1"),
        ("tflite:float16", "brings litert 1.0.1, litert-gpu 1.0.1"),
        ("onnx:static_wi8_ai8_u@fixed", "brings onnxruntime-android-qnn 1.20.0"),
    ],
)
def test_gradle_says_what_an_artifact_brings(bundles: list[Path], artifact: str, wanted: str) -> None:
    text = kotlin.sources(models(bundles, artifact))[kotlin_names.GRADLE_FILE]

    assert 'noCompress += listOf("onnx", "ort", "tflite")' in text
    (line,) = [line for line in text.splitlines() if line.startswith("    implementation(")]
    assert line.endswith(wanted)


def test_refuses_a_dtype_that_android_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"digits-float32.onnx: tensor 'counts' is uint64"):
        make_bundle(
            tmp_path / "bundle",
            name="digits",
            artifacts=["onnx:float32"],
            signature=echo(("counts", "uint64", (1, 3))),
            contract=None,
        )


@pytest.mark.slow
@needs_java
@needs_kotlin
@needs_junit
def test_compiles_with_its_tests_which_replay_the_golden_vectors_and_name_mistakes(
    bundles: list[Path], tmp_path: Path
) -> None:
    jars, files, tests, count = [], [], [], 0
    assets, recorded, registry = (tmp_path / name for name in ("assets", "recorded", "registry"))
    for number, bundle in enumerate(bundles):
        jars += jars_of(registry, pack(bundle, registry), tmp_path / f"unpacked{number}")
        files += sorted((bundle / "integration").rglob("*.kt"))
        for model in models_of(bundle):
            (assets / model.asset).parent.mkdir(parents=True, exist_ok=True)
            (assets / model.asset).write_bytes((bundle / "models" / model.file).read_bytes())
            if NASTY in [spec.name for spec in model.inputs]:
                continue  # no file name, and the recorded answers are files
            write_recorded(bundle, model.file, recorded, first=2 * number)
            tests.append(f"{model.package}.{kotlin_names.type_of(model)}GoldenTest")
            tests += [f"{model.package}.{kotlin_names.type_of(model)}PicturesTest"] * model.takes_pictures
            count += 3 if model.takes_pictures else 1
    mistaken = tmp_path / "Mistaken.kt"
    original = next(path for path in files if path.name == "DigitsFloat16LiteRtPicturesTest.kt").read_text()
    mistaken.write_text(
        original.replace("class DigitsFloat16LiteRtPicturesTest", "class MistakenTest").replace(
            "Preprocessing.tensor(argb, width, height)",
            "(Preprocessing.tensor(argb, width, height) as FloatArray).also { t -> t.indices.forEach { t[it] *= 255f } }",
        )
    )
    path = ":".join(map(str, (interfaces(), *jars, *JUNIT, _older_library())))
    main = tmp_path / "main.jar"
    run("kotlinc", *files, mistaken, "-cp", path, "-include-runtime", "-d", main)

    properties = (f"-Dstandin.recorded={recorded}", f"-Dstandin.assets={assets}")
    said = run("java", *properties, "-cp", f"{main}:{path}", "org.junit.runner.JUnitCore", *tests)
    assert f"OK ({count} tests)" in said

    (package,) = {model.package for model in models(bundles, "tflite:float16")}
    failed = fails_or_not(
        "java", "-cp", f"{main}:{path}", "org.junit.runner.JUnitCore", f"{package}.MistakenTest"
    )
    assert failed.returncode == 1
    assert "golden picture 0 of input image: resize: the picture differs by " in failed.stdout


def _older_library() -> Path:
    """Return the library that holds `AutoCloseable.use` beside compilers older than Kotlin 1.8 (Debian's)."""
    compiler = Path(shutil.which("kotlinc") or "").resolve()
    return compiler.parent.parent / "lib" / "kotlin-stdlib-jdk7.jar"

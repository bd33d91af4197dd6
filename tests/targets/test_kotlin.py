"""Generated Kotlin: complete, not to be broken by names, and compiled and run where a compiler is installed."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.preprocess import Preprocess
from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, TensorSpec
from exporter.errors import UnsupportedError
from targets import kotlin
from targets.android import CAPABILITIES
from targets.base import BundleRequest, Delivery, ModelCard, TargetOptions

JVM_INTERFACES = Path(__file__).parent / "jvm"
NASTY = 'a$b"c\\d\n${e}'


def request_for(
    *artifacts: tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    name: str = "digits",
    preprocess: dict[str, Any] | None = None,
) -> BundleRequest:
    deliveries = []
    for text, inputs, outputs in artifacts:
        spec = ArtifactSpec.parse(text)
        path = Path("models") / spec.file_name(name)
        artifact = Artifact(spec, path, 1, "0" * 64, inputs, outputs, Coverage(()))
        deliveries.append(Delivery(artifact, Evidence(spec), CAPABILITIES.runtimes_for(spec)))
    card = ModelCard(name, "1.0.0", (), preprocess or {})
    return BundleRequest(card, tuple(deliveries), TargetOptions(), Path("unused"))


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


def many_requests() -> list[BundleRequest]:
    """Return requests that reach every branch of the templates."""
    return [
        request_for(
            ("onnx:float32", *echo(("image", "float32", ("batch", 3)))),
            ("onnx:static_wi8_ai8@fixed", *echo(*EVERY_DTYPE)),
            ("onnx:static_wi8_ai8_u@fixed", *echo(("image", "float32", (1, 3)))),
            (
                "ort:dynamic_wi8_ai8",
                *echo(("ids", "int64", ("batch", "length")), ("mask", "int64", ("batch", "length"))),
            ),
            ("tflite:float16", *echo(("image", "float32", (1, 3)))),
            ("tflite:static_wi8_ai8", *echo(*EVERY_DTYPE)),
        ),
        request_for(
            (
                "onnx:float32@fixed",
                *echo(
                    (NASTY, "float32", (1, 3)),
                    ("fun", "float32", (1, 2)),
                    ("in.put", "int64", (1,)),
                    ("in_put", "int64", (1,)),
                ),
            ),
            ("tflite:float32", *echo((NASTY, "float32", (1, 3)), ("it", "float32", (1, 2)))),
            name="3d.in-class_net",
        ),
    ]


@pytest.mark.parametrize("number", range(len(many_requests())))
def test_leaves_no_placeholder_and_closes_every_bracket(number: int) -> None:
    for path, text in kotlin.sources(many_requests()[number]).items():
        assert "%%" not in text, path
        bare = re.sub(r'"(\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', "", text, flags=re.DOTALL)
        for opening, closing in ("()", "[]", "{}"):
            assert bare.count(opening) == bare.count(closing), (path, opening)


def test_names_types_after_model_scheme_and_runtime() -> None:
    assert sorted(kotlin.sources(many_requests()[0])) == [
        "integration/build.gradle.kts",
        "integration/kotlin/DigitsDynamicWi8Ai8Ort.kt",
        "integration/kotlin/DigitsFloat16LiteRt.kt",
        "integration/kotlin/DigitsFloat32Onnx.kt",
        "integration/kotlin/DigitsStaticWi8Ai8FixedOnnx.kt",
        "integration/kotlin/DigitsStaticWi8Ai8LiteRt.kt",
        "integration/kotlin/DigitsStaticWi8Ai8UFixedOnnx.kt",
    ]


def test_fills_in_names_shapes_and_axes() -> None:
    sources = kotlin.sources(many_requests()[0])

    text = sources["integration/kotlin/DigitsDynamicWi8Ai8Ort.kt"]
    assert "fun run(ids: LongArray, mask: LongArray, batch: Long, length: Long): Outputs" in text
    assert "LongBuffer.wrap(ids), longArrayOf(batch, length))" in text
    assert 'const val FILE: String = "digits-dynamic_wi8_ai8.ort"' in text


def test_user_text_cannot_leave_its_literal() -> None:
    text = kotlin.sources(many_requests()[1])["integration/kotlin/Model3dInClassNetFloat32FixedOnnx.kt"]

    assert r'feeds["a\$b\"c\\d\u000A\${e}"]' in text
    assert "package edge.model_3d_in_class_net\n" in text
    assert "run(aBCDE: FloatArray, funValue: FloatArray, inPut: LongArray, inPut2: LongArray)" in text


@pytest.mark.parametrize(
    ("artifacts", "wanted", "unwanted"),
    [
        (("onnx:float32",), ["onnxruntime-android:"], ["litert", "qnn"]),
        (("tflite:static_wi8_ai8",), ["litert:", "litert-gpu:"][:1], ["onnxruntime", "litert-gpu"]),
        (("tflite:float16",), ["litert:", "litert-gpu:"], ["onnxruntime"]),
        (
            ("onnx:float32", "onnx:static_wi8_ai8_u@fixed"),
            ["onnxruntime-android-qnn:"],
            ["onnxruntime-android:"],
        ),
    ],
)
def test_gradle_asks_for_what_the_artifacts_need(
    artifacts: tuple[str, ...], wanted: list[str], unwanted: list[str]
) -> None:
    tensors = echo(("image", "float32", (1, 3)))
    text = kotlin.sources(request_for(*((name, *tensors) for name in artifacts)))[kotlin.GRADLE_FILE]

    assert 'noCompress += listOf("onnx", "ort", "tflite")' in text
    assert all(name in text for name in wanted)
    assert not any(name in text for name in unwanted)


def test_refuses_a_dtype_that_android_does_not_take() -> None:
    request = request_for(("onnx:float32", *echo(("counts", "uint64", (1, 3)))))

    with pytest.raises(UnsupportedError, match=r"digits-float32.onnx: tensor 'counts' is uint64"):
        kotlin.sources(request)


def test_says_when_no_preprocessing_is_generated() -> None:
    contract = Preprocess(size=(8, 8), dtype="float16").to_dict()
    request = request_for(("onnx:float32", *echo(("image", "float32", (1, 3)))), preprocess=contract)
    sources = kotlin.sources(request)

    assert not any("Preprocessing" in path for path in sources)
    assert "No Kotlin is generated for float16" in kotlin.usage(request, tuple(sources))


CONTRACTS = {
    "stretch": Preprocess(size=(9, 7), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
    "crop": Preprocess(size=(9, 7), fit="crop", resize="bicubic", layout="NHWC"),
    "letterbox": Preprocess(size=(12, 31), fit="letterbox", pad=114, color="BGR", resize="bicubic"),
    "nearest": Preprocess(size=(13, 40), resize="nearest", dtype="uint8", scale=1.0),
    "grey": Preprocess(size=(6, 6), color="L", mean=(0.1,), std=(0.9,), fit="crop"),
    "signed": Preprocess(size=(40, 50), dtype="int8", scale=1.0, mean=(128.0,)),
}


def _main(folder: Path) -> str:
    """Return a program that prepares one picture by every contract and echoes tensors through a session."""
    calls = []
    for name, contract in CONTRACTS.items():
        write = "out.writeFloat(it)" if contract.dtype == "float32" else "out.writeByte(it.toInt())"
        title = name.capitalize()
        calls.append(
            f'    DataOutputStream(File("{folder}/{name}.bin").outputStream().buffered()).use {{ out ->\n'
            f"        edge.model_{name}.{title}Preprocessing.tensor(argb, 31, 20).forEach {{ {write} }}\n    }}"
        )
    body = "\n".join(calls)
    return f"""\
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File

fun main() {{
    val argb = DataInputStream(File("{folder}/argb.bin").inputStream().buffered()).use {{ input ->
        IntArray(31 * 20) {{ input.readInt() }}
    }}
{body}
    val image = floatArrayOf(1f, -2f, 3.5f)
    println(edge.model_digits.DigitsFloat32Onnx(ByteArray(0)).use {{ it.run(image, 1).image.toList() }})
    val direct = java.nio.ByteBuffer.allocateDirect(1)
    println(edge.model_digits.DigitsFloat16LiteRt(direct).use {{ it.run(image).image.toList() }})
}}
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("kotlinc") is None or shutil.which("javac") is None,
    reason="no Kotlin compiler; on Debian: apt-get install kotlin default-jdk-headless",
)
def test_compiles_and_prepares_pictures_exactly_as_calibration_does(tmp_path: Path) -> None:
    sources: dict[str, str] = {}
    for number, request in enumerate(many_requests()):
        sources |= {f"{number}/{path}": text for path, text in kotlin.sources(request).items()}
    for name, contract in CONTRACTS.items():
        request = request_for(name=name, preprocess=contract.to_dict())
        sources |= {f"{name}/{path}": text for path, text in kotlin.sources(request).items()}
    sources["Main.kt"] = _main(tmp_path)
    for path, text in sources.items():
        if path.endswith(".kt"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
    pixels = np.random.default_rng(11).integers(0, 256, (20, 31, 4)).astype(np.uint8)
    pixels[:, :16, 3] = 255
    argb = pixels[:, :, [3, 0, 1, 2]]
    (tmp_path / "argb.bin").write_bytes(argb.tobytes())

    interfaces = sorted(map(str, JVM_INTERFACES.rglob("*.java")))
    classes = tmp_path / "classes"
    _check("javac", "-d", str(classes), *interfaces)
    kotlin_files = sorted(str(path) for path in tmp_path.rglob("*.kt"))
    jar = tmp_path / "main.jar"
    path = f"{classes}:{_older_library()}"
    _check("kotlinc", *kotlin_files, "-cp", path, "-include-runtime", "-d", str(jar))
    echoed = _check("java", "-cp", f"{jar}:{path}", "MainKt")

    assert echoed.splitlines() == ["[1.0, -2.0, 3.5]"] * 2
    for name, contract in CONTRACTS.items():
        expected = contract.apply(Image.fromarray(pixels, "RGBA"))
        stored = np.dtype(contract.dtype).newbyteorder(">")
        tensor = np.frombuffer((tmp_path / f"{name}.bin").read_bytes(), stored).reshape(expected.shape)
        np.testing.assert_array_equal(tensor.astype(contract.dtype), expected, err_msg=name)


def _older_library() -> Path:
    """Return the library that holds `AutoCloseable.use` beside compilers older than Kotlin 1.8 (Debian's)."""
    compiler = Path(shutil.which("kotlinc") or "").resolve()
    return compiler.parent.parent / "lib" / "kotlin-stdlib-jdk7.jar"


def _check(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_two_requests_with_the_same_data_give_the_same_text() -> None:
    first, second = many_requests()[0], many_requests()[0]

    assert kotlin.sources(first) == kotlin.sources(dataclasses.replace(second))

"""What each built-in target says it runs, wants and refuses: the contract that planning relies on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from exporter.artifacts import ArtifactSpec
from exporter.errors import UnsupportedError
from targets.android.target import TARGET as ANDROID
from targets.base import BundleRequest, ModelCard, Target, TargetOptions, Verdict
from targets.ios.target import TARGET as IOS
from targets.ios.target import IosOptions
from targets.raspberry_pi.target import BOARDS, RaspberryPiOptions
from targets.raspberry_pi.target import TARGET as PI


def runs(target: Target, text: str, **options: str) -> list[str]:
    chosen = target.options_model.model_validate(options)
    found = target.capabilities(chosen).runtimes_for(ArtifactSpec.parse(text))
    return [runtime.runtime for runtime in found]


def refusal(target: Target, text: str, **options: str) -> str:
    chosen = target.options_model.model_validate(options)
    return target.capabilities(chosen).refusal(ArtifactSpec.parse(text)) or ""


@pytest.mark.parametrize(
    ("target", "text", "runtimes"),
    [
        (ANDROID, "onnx:static_wi8_ai8", ["onnxruntime-cpu"]),
        (ANDROID, "onnx:static_wi8_ai8@fixed", ["onnxruntime-cpu", "onnxruntime-xnnpack"]),
        (ANDROID, "onnx:static_wi8_ai8_u@fixed", ["onnxruntime-qnn"]),
        (ANDROID, "ort:static_wi8_ai8@fixed", ["onnxruntime-cpu", "onnxruntime-xnnpack"]),
        (ANDROID, "tflite:static_wi8_ai8", ["litert-xnnpack"]),
        (ANDROID, "tflite:float16", ["litert-gpu", "litert-xnnpack"]),
        (ANDROID, "onnx:weight_only_wi4_b32", ["onnxruntime-cpu"]),
        (ANDROID, "tflite:dynamic_wi8_ai8", ["litert-xnnpack"]),
        (IOS, "mlpackage:float16", ["coreml"]),
        (IOS, "mlpackage:weight_only_wi8", ["coreml"]),
        (IOS, "onnx:float32@fixed", ["onnxruntime-coreml", "onnxruntime-cpu"]),
        (IOS, "onnx:float32", ["onnxruntime-cpu"]),
        (IOS, "onnx:static_wi8_ai8", ["onnxruntime-cpu"]),
        (PI, "onnx:static_wi8_ai8", ["onnxruntime-cpu"]),
        (PI, "tflite:static_wi8_ai8", ["litert-xnnpack"]),
    ],
)
def test_runs_an_artifact_in_these_runtimes_preferred_first(
    target: Target, text: str, runtimes: list[str]
) -> None:
    assert runs(target, text) == runtimes


@pytest.mark.parametrize(
    ("target", "text", "why"),
    [
        (ANDROID, "onnx:static_wi8_ai8_u", "write onnx:static_wi8_ai8_u@fixed"),
        (ANDROID, "onnx:float16", "tflite:float16"),
        (ANDROID, "mlpackage:float16", "not on Android"),
        (ANDROID, "tflite:static_wi8_ai8_u", "signed"),
        (IOS, "onnx:float16", "mlpackage:float16"),
        (IOS, "tflite:float16", "does not pack it"),
        (IOS, "mlpackage:static_wi8_ai8", "macOS"),
        (IOS, "mlpackage:weight_only_wi4_b32", 'set minimum = "18"'),
        (PI, "onnx:static_wi8_ai8_u", "onnx:static_wi8_ai8"),
        (PI, "mlpackage:float32", "not on a Raspberry Pi"),
    ],
)
def test_refuses_with_a_reason_to_act_on(target: Target, text: str, why: str) -> None:
    assert runs(target, text) == []
    assert why in refusal(target, text)


@pytest.mark.parametrize("minimum", ["18", "18.1", "26", "26.0"])
def test_int4_runs_from_ios_18_on(minimum: str) -> None:
    assert runs(IOS, "mlpackage:weight_only_wi4_b32", minimum=minimum) == ["coreml"]
    assert runs(IOS, "mlpackage:weight_only_wi4_b32", minimum="17.9") == []


@pytest.mark.parametrize("minimum", ["15", "9", "15.8", "seventeen", "", "17.", "017", "17.4.1", " 17", "١٧"])
def test_ios_minimum_is_a_version_from_16_on(minimum: str) -> None:
    with pytest.raises(ValidationError):
        IosOptions(minimum=minimum)


def test_boards_differ_in_dot_products() -> None:
    with_dot_product = {str(board) for board, facts in BOARDS.items() if facts.has_dot_product}

    assert {str(board) for board in BOARDS} == {"zero2w", "pi3", "pi4", "pi5"}
    assert with_dot_product == {"pi5"}
    assert RaspberryPiOptions().board == "pi5"
    with pytest.raises(ValidationError):
        RaspberryPiOptions.model_validate({"board": "pi6"})


def test_options_of_another_target_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="ios target was given TargetOptions"):
        IOS.capabilities(TargetOptions())
    with pytest.raises(UnsupportedError, match="raspberry-pi target was given IosOptions"):
        PI.bundle(BundleRequest(ModelCard("m", "1.0.0"), (), IosOptions(), Path("unused")))


def test_verdicts_tell_never_from_not_yet() -> None:
    capabilities = IOS.capabilities(IosOptions())

    def verdict(text: str) -> Verdict:
        return capabilities.verdict(ArtifactSpec.parse(text))

    assert verdict("onnx:float32") is Verdict.RUNS
    assert verdict("onnx:float16") is Verdict.NEVER
    assert verdict("mlpackage:weight_only_wi4_b32") is Verdict.NOT_YET
    # Runs once its shapes are fixed, so the format and scheme as such run.
    assert (
        ANDROID.capabilities(TargetOptions()).verdict(ArtifactSpec.parse("onnx:static_wi8_ai8_u"))
        is Verdict.RUNS
    )


def test_onnx_files_are_bounded_by_what_phone_packages_read() -> None:
    for target in (ANDROID, IOS, PI):
        for runtime in target.capabilities(target.options_model()).runtimes:
            is_onnx = runtime.runtime.startswith("onnxruntime")
            assert (runtime.max_opset, runtime.max_ir_version) == ((21, 10) if is_onnx else (None, None))

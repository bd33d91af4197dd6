from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from calibration.checks import Finding, check_dataset
from calibration.dataset import ArrayDataset, ListDataset
from exporter.errors import CalibrationError


@dataclass(frozen=True)
class Spec:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


IMAGE = Spec("image", "float32", ("batch", 3, 8, 8))
IDS = Spec("ids", "int64", ("batch", "length"))
MASK = Spec("mask", "int64", ("batch", "length"))


def images(count: int = 120, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def refusal(samples: list[dict[str, np.ndarray]], *specs: Spec, minimum: int = 1) -> CalibrationError:
    with pytest.raises(CalibrationError) as caught:
        check_dataset(ListDataset(samples), specs or (IMAGE,), minimum=minimum)
    assert caught.value.exit_code == 13
    return caught.value


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_good_data_has_no_findings() -> None:
    assert check_dataset(ArrayDataset({"image": images()}), [IMAGE]) == []


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "-Inf")])
def test_a_non_finite_element_is_named(value: float, shown: str) -> None:
    data = images(20)
    data[13, 2, 1, 5] = value
    error = refusal(list(ArrayDataset({"image": data})))
    assert error.cause == f"sample 13, input 'image': {shown} at (0, 2, 1, 5) (flat index 141)"
    assert error.details == {"sample": 13, "input": "image", "flat_index": 141}


@pytest.mark.parametrize(
    ("array", "cause", "fix"),
    [
        (
            np.zeros((3, 8, 8), np.float32),
            "expected rank 4 (batch, 3, 8, 8), got rank 3 (3, 8, 8)",
            "the batch axis is missing",
        ),
        (np.zeros((8, 8, 3), np.float32), "got rank 3 (8, 8, 3)", "looks like HWC without a batch axis"),
        (
            np.zeros((1, 8, 8, 3), np.float32),
            "expected shape (batch, 3, 8, 8), got (1, 8, 8, 3)",
            "looks like NHWC: transpose with (0, 3, 1, 2)",
        ),
        (np.zeros((1, 1, 3, 8, 8), np.float32), "got rank 5", "one batch axis too many"),
        (np.zeros((1, 3, 9, 8), np.float32), "got (1, 3, 9, 8)", "resize, crop or pad axis 2 from 9 to 8"),
        (np.zeros((1, 3, 8, 8), np.float64), "expected float32, got float64", "cast with astype('float32')"),
        (np.zeros((1, 3, 8, 8), np.uint8), "expected float32, got uint8", "looks like raw pixels 0..255"),
        (np.zeros((1, 3, 8, 8), np.int64), "expected float32, got int64", "store the array as float32"),
    ],
)
def test_wrong_arrays_are_refused_with_the_likely_cause(array: np.ndarray, cause: str, fix: str) -> None:
    error = refusal([{"image": array}])
    assert error.cause.startswith("sample 0, input 'image': ")
    assert cause in error.cause
    assert fix in error.fix


def test_nchw_given_for_nhwc_is_suspected() -> None:
    error = refusal([{"image": np.zeros((1, 3, 8, 8), np.float32)}], Spec("image", "float32", ("n", 8, 8, 3)))
    assert error.fix == "looks like NCHW: transpose with (0, 2, 3, 1)"


def test_a_batch_given_to_a_model_of_batch_one() -> None:
    error = refusal([{"image": np.zeros((4, 3, 8, 8), np.float32)}], Spec("image", "float32", (1, 3, 8, 8)))
    assert "must be a batch of 1, not of 4" in error.fix


def test_float_token_ids_are_recognised() -> None:
    assert "token ids stored as floats" in refusal([{"ids": np.zeros((1, 4), np.float32)}], IDS).fix


@pytest.mark.parametrize(
    ("names", "cause", "fix"),
    [
        (["imgae"], "expected inputs 'image', got 'imgae'", "rename 'imgae' to 'image'"),
        (
            ["pixels"],
            "expected inputs 'image', got 'pixels'",
            "rename 'pixels' to 'image', if that is what it holds",
        ),
        ([], "expected inputs 'image', got none", "add 'image'"),
        (["image", "extra"], "expected inputs 'image', got 'extra', 'image'", "remove 'extra'"),
    ],
)
def test_wrong_names_are_refused(names: list[str], cause: str, fix: str) -> None:
    error = refusal([dict.fromkeys(names, images(1))])
    assert error.cause == f"sample 0: {cause}"
    assert error.fix == fix


def test_a_list_is_no_array() -> None:
    assert "expected an array, got list" in refusal([{"image": [[1.0]]}]).cause  # type: ignore[dict-item]


def test_no_samples_and_too_few_are_refused_with_the_count() -> None:
    assert "holds 0 samples, 1 are needed" in refusal([]).cause
    assert "holds 4 samples, 32 are needed" in refusal([{"image": images(1)}] * 4, minimum=32).cause


def test_constant_data_is_refused() -> None:
    error = refusal([{"image": np.full((1, 3, 8, 8), 0.5, np.float32)}] * 3)
    assert error.cause == "every element of input 'image' is 0.5 in all 3 samples"


def test_one_constant_float_input_is_a_finding_and_a_constant_mask_is_none() -> None:
    rate = Spec("rate", "float32", (1,))
    samples = [
        {
            "ids": np.array([[i, i + 1]]),
            "mask": np.ones((1, 2), np.int64),
            "rate": np.array([16000], np.float32),
        }
        for i in range(120)
    ]
    findings = check_dataset(ListDataset(samples), [IDS, MASK, rate])
    assert codes(findings) == ["constant-input"]
    assert "'rate' is 16000 in every sample" in findings[0].message


def test_duplicates_are_counted() -> None:
    data = images(120)
    data[[7, 30]] = data[3]
    findings = check_dataset(ArrayDataset({"image": data}), [IMAGE])
    assert codes(findings) == ["duplicates"]
    assert findings[0].message == "2 of 120 samples repeat another (first: 3, 7, 30)"


def test_identical_samples_are_a_finding() -> None:
    findings = check_dataset(ListDataset([{"image": images(1)}] * 120), [IMAGE])
    assert [finding.message for finding in findings] == ["all 120 samples are identical"]


def test_few_samples_and_blank_ones_are_findings() -> None:
    data = images(50)
    data[4], data[9] = 0.25, 0.5
    findings = check_dataset(ArrayDataset({"image": data}), [IMAGE])
    assert codes(findings) == ["too-few", "blank-samples"]
    assert "first: 4, 9" in findings[1].message


def test_an_extreme_outlier_names_sample_and_value() -> None:
    data = images(120)
    data[77, 0, 0, 0] = 3e38
    findings = check_dataset(ArrayDataset({"image": data}), [IMAGE])
    assert codes(findings) == ["outlier"]
    assert findings[0].message.startswith("sample 77 of input 'image' reaches 3e+38, typical samples reach ")


def test_ragged_samples_are_fine() -> None:
    samples = [{"ids": np.arange(n + 1)[None]} for n in range(120)]
    assert check_dataset(ListDataset(samples), [IDS]) == []


def test_an_input_without_axes_is_fine() -> None:
    samples = [{"x": np.float32(n) * np.ones((), np.float32)} for n in range(120)]
    assert (
        check_dataset(ListDataset([{"x": np.asarray(s["x"])} for s in samples]), [Spec("x", "float32", ())])
        == []
    )

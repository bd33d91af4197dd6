"""Preprocessing mistakes are named: every one is found, and none is claimed that was not made.

The mistakes are made by the calibration's own code with another contract; the script knows nothing of it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from run_script_ground import load_script

from calibration.preprocess import Preprocess

SCRIPT = load_script()
IMAGENET = Preprocess(size=(6, 8), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ARITHMETIC = ("range", "scaled-twice", "normalisation", "raw")
SINGLES = ("color", "layout", *ARITHMETIC)
CODES = (
    *SINGLES,
    "color+layout",
    *(f"{code}+{extra}" for code in ARITHMETIC for extra in ("color", "layout", "color+layout")),
)


def name_mistake(expected: np.ndarray, got: np.ndarray, contract: Preprocess) -> tuple[str, str]:
    answer: tuple[str, str] = SCRIPT.name_mistake(expected, got, contract.to_dict())
    return answer


def mistaken(contract: Preprocess, code: str) -> Preprocess:
    """Return the contract that somebody follows who makes the mistake `code`."""
    changes: dict[str, Any] = {}
    for part in code.split("+"):
        if part == "color":
            changes["color"] = contract.color[::-1]
        elif part == "layout":
            changes["layout"] = {"NCHW": "NHWC", "NHWC": "NCHW"}[contract.layout]
        elif part == "range":
            changes["scale"] = 1.0
        elif part == "scaled-twice":
            changes["scale"] = contract.scale**2
        elif part == "normalisation":
            changes |= {"mean": (0.0,), "std": (1.0,)}
        elif part == "raw":
            changes |= {"scale": 1.0, "mean": (0.0,), "std": (1.0,)}
    return dataclasses.replace(contract, **changes)


def noise(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@st.composite
def contracts(draw: st.DrawFn) -> Preprocess:
    """Contracts under which every mistake shows: channels, scale, mean and std all matter."""
    color = draw(st.sampled_from(["RGB", "BGR", "L"]))
    channels = 1 if color == "L" else 3
    return Preprocess(
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        color=color,
        size=(draw(st.integers(4, 12)), draw(st.integers(4, 12))),
        resize=draw(st.sampled_from(["bilinear", "bicubic", "nearest"])),
        fit=draw(st.sampled_from(["stretch", "crop", "letterbox"])),
        scale=draw(st.sampled_from([1 / 255, 1 / 256, 1 / 127.5])),
        mean=tuple(draw(st.floats(0.1, 0.9)) for _ in range(channels)),
        std=tuple(draw(st.floats(0.1, 0.7)) for _ in range(channels)),
        dtype=draw(st.sampled_from(["float32", "float16"])),
        pad=draw(st.integers(0, 255)),
    )


@settings(deadline=None, max_examples=150)
@given(contracts(), st.sampled_from(CODES), st.integers(0, 2**32 - 1), st.data())
def test_every_mistake_is_found_under_any_contract(
    contract: Preprocess, code: str, seed: int, data: st.DataObject
) -> None:
    assume(contract.color != "L" or not {"color", "layout"} & set(code.split("+")))
    # Barely larger than the tensor, so that averaging leaves colours to tell apart.
    sides = [side + data.draw(st.integers(0, 3)) for side in contract.size]
    picture = noise(seed, *sides)

    told, _ = name_mistake(contract.apply(picture), mistaken(contract, code).apply(picture), contract)

    if contract.dtype == "float16" and code.startswith("scaled-twice"):
        told, _, _ = told.partition("+")  # so near to a constant, float16 shows neither colours nor places
        code, _, _ = code.partition("+")
    assert told == code


SENTENCES = {
    "color": "channels are in the order BGR instead of RGB",
    "layout": "the tensor is laid out NHWC instead of NCHW",
    "range": "pixels are 0..255 where they should have been multiplied by 0.00392157",
    "scaled-twice": "pixels were multiplied by 0.00392157 twice",
    "normalisation": "mean and std were not applied",
    "raw": "pixels are given as they are: neither scaled nor normalised",
}


@pytest.mark.parametrize("code", CODES)
def test_a_mistake_is_told_in_a_sentence(code: str) -> None:
    picture = noise(1, 6, 8)
    told = name_mistake(IMAGENET.apply(picture), mistaken(IMAGENET, code).apply(picture), IMAGENET)
    assert told == (code, "; and ".join(SENTENCES[part] for part in code.split("+")))


def test_the_other_orders_are_told_the_other_way_round() -> None:
    contract, picture = dataclasses.replace(IMAGENET, color="BGR", layout="NHWC"), noise(2, 6, 8)
    told = name_mistake(contract.apply(picture), mistaken(contract, "color+layout").apply(picture), contract)
    assert told == (
        "color+layout",
        "channels are in the order RGB instead of BGR; and the tensor is laid out NCHW instead of NHWC",
    )


@settings(deadline=None, max_examples=80)
@given(contracts(), st.integers(0, 2**32 - 1), st.floats(0.0, 1.9))
def test_what_differs_by_a_level_or_two_agrees(contract: Preprocess, seed: int, levels: float) -> None:
    golden = contract.apply(noise(seed, *contract.size)).astype(np.float64)
    level = contract.scale / np.asarray(contract.std)
    level = level.reshape(-1, 1, 1) if contract.layout == "NCHW" else level
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], golden.shape)

    told = name_mistake(golden, golden + signs * levels * level, contract)

    assert told == ("ok", "the tensor agrees with the golden one")


@settings(deadline=None, max_examples=120)
@given(
    contracts(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["flip", "turn", "resize", "fit", "other", "speck"]),
)
def test_another_picture_is_none_of_the_mistakes(contract: Preprocess, seed: int, change: str) -> None:
    """Geometry that went wrong must never be told as colour, layout or arithmetic."""
    height, width = contract.size
    picture = noise(seed, height + 2, width + 3)
    golden = contract.apply(picture)
    if change == "flip":
        got = contract.apply(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    elif change == "turn":
        got = contract.apply(picture.transpose(Image.Transpose.ROTATE_90))
    elif change == "other":
        got = contract.apply(noise(seed ^ 1, height, width))
    elif change == "speck":
        got = golden.copy()
        got.flat[seed % got.size] += np.asarray(5 * contract.scale / min(contract.std), got.dtype)
    else:
        choices = {"resize": ["bilinear", "bicubic", "nearest"], "fit": ["stretch", "crop", "letterbox"]}[
            change
        ]
        others = [choice for choice in choices if choice != getattr(contract, change)]
        got = dataclasses.replace(contract, **{change: others[seed % 2]}).apply(picture)

    differences = np.abs(got.astype(np.float64) - golden) * min(contract.std) / contract.scale
    assume(differences.max() > 3)  # a crop of nearly the same shape is the same picture

    told, says = name_mistake(golden, got, contract)

    assert told == "resize"
    assert says.endswith(f"another resize, fit or orientation than {contract.resize}/{contract.fit}")


def test_the_differences_of_another_picture_are_told_in_levels() -> None:
    golden = IMAGENET.apply(noise(3, 6, 8))
    got = golden.copy()
    got[0, 1, 2, 3] += 10 / 255 / 0.224
    assert name_mistake(golden, got, IMAGENET) == (
        "resize",
        "the picture differs by 10.0 grey levels at most, 0.1 on average: "
        "another resize, fit or orientation than bilinear/stretch",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_before_all_else(value: float) -> None:
    golden = IMAGENET.apply(noise(4, 6, 8))
    got = np.where(np.arange(golden.size).reshape(golden.shape) < 2, value, golden)
    assert name_mistake(golden, got, IMAGENET) == ("not-finite", "2 of its 144 values are not finite numbers")


def test_a_tensor_of_another_size_is_told_by_its_size() -> None:
    golden = IMAGENET.apply(noise(5, 6, 8))
    assert name_mistake(golden, golden[:, :1], IMAGENET) == (
        "size",
        "the tensor has 48 values, the model takes 144",
    )


def test_mistakes_that_change_nothing_are_not_claimed() -> None:
    """Without mean, std and scale, or in a picture without colours, there is nothing to forget."""
    plain = Preprocess(size=(6, 8), scale=1.0)
    grey = Image.fromarray(np.random.default_rng(6).integers(0, 256, (6, 8), np.uint8)).convert("RGB")
    for code in SINGLES:
        told, _ = name_mistake(plain.apply(grey), mistaken(plain, code).apply(grey), plain)
        assert told == ("layout" if code == "layout" else "ok"), code


def test_a_mistake_too_small_to_show_is_not_claimed_at_the_edge_of_agreement() -> None:
    """Forgetting this mean moves a value by a two-hundredth of a level: the other two levels have another cause."""
    contract = Preprocess(size=(6, 8), mean=(0.005 / 255,))
    golden = contract.apply(noise(11, 6, 8)).astype(np.float64)
    assert name_mistake(golden, golden + 2.004 / 255, contract)[0] == "resize"
    assert name_mistake(golden, golden + 2.0 / 255, contract)[0] == "ok"


@pytest.mark.parametrize("code", ["color", "layout", "color+layout"])
@pytest.mark.parametrize(("dtype", "mean"), [("uint8", 0.0), ("int8", 128.0)])
def test_integer_tensors_have_mistakes_too(code: str, dtype: str, mean: float) -> None:
    contract = Preprocess(size=(6, 8), scale=1.0, mean=(mean,), dtype=dtype)
    picture = noise(7, 6, 8)
    assert name_mistake(contract.apply(picture), mistaken(contract, code).apply(picture), contract)[0] == code


def test_bytes_that_were_not_moved_to_int8_are_found() -> None:
    contract = Preprocess(size=(6, 8), scale=1.0, mean=(128.0,), dtype="int8")
    picture = noise(8, 6, 8)
    golden, unsigned = contract.apply(picture), np.asarray(picture, np.float32).transpose(2, 0, 1)[np.newaxis]
    assert name_mistake(golden, unsigned, contract)[0] == "normalisation"
    assert (
        name_mistake(golden, mistaken(contract, "normalisation").apply(picture), contract)[0]
        == "normalisation"
    )


def test_a_coarse_integer_tensor_hides_no_mistake() -> None:
    """One step of this tensor is 2 grey levels: what it cannot tell apart is no difference."""
    contract = Preprocess(size=(6, 8), scale=0.5, mean=(0.0,), std=(1.0,), dtype="uint8")
    picture = noise(9, 6, 8)
    got = np.asarray(picture, np.uint8).transpose(2, 0, 1)[np.newaxis]
    assert name_mistake(contract.apply(picture), got, contract)[0] == "range"


def test_a_swapped_golden_picture_fails_as_color(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a replay, with a picture whose channels somebody else's decoder has swapped."""
    picture = noise(10, 9, 7)
    folder = tmp_path / "golden" / "0"
    folder.mkdir(parents=True)
    np.save(folder / "input.x.npy", IMAGENET.apply(picture))
    Image.fromarray(np.asarray(picture)[..., ::-1].copy()).save(folder / "raw.x.png")
    monkeypatch.setattr(SCRIPT, "BUNDLE", tmp_path)
    golden = {"samples": [{"inputs": {"x": "0/input.x.npy"}, "raw": {"x": "0/raw.x.png"}}]}

    assert SCRIPT.replay_pictures(golden, IMAGENET.to_dict()) == {
        "samples": 1,
        "passed": False,
        "cause": "color",
        "says": "sample 0, 0/raw.x.png: channels are in the order BGR instead of RGB",
    }

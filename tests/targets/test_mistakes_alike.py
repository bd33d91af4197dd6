"""The tool and the script that travels with a bundle name the same mistakes in the same words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_script_ground import load_script

from calibration.preprocess import FITS, RESIZES, Preprocess
from exporter.bundle.mistakes import SINGLE_CODES, name_mistake, revealed_codes

SCRIPT = load_script()


@st.composite
def contracts(draw: st.DrawFn) -> Preprocess:
    """Contracts of all kinds, those under which some mistakes change nothing among them."""
    color = draw(st.sampled_from(["RGB", "BGR", "L"]))
    channels = 1 if color == "L" else 3
    dtype = draw(st.sampled_from(["float32", "float16", "uint8", "int8"]))
    scale = draw(st.sampled_from([1 / 255, 1.0, 0.5, 2.0]))
    means = st.sampled_from([0.0, *(share * 255 * scale for share in (0.406, 0.485, 0.5))])
    stds = st.sampled_from([1.0, *(share * 255 * scale for share in (0.225, 0.229, 0.5))])
    return Preprocess(
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        color=color,
        size=(draw(st.integers(1, 6)), draw(st.integers(1, 6))),
        resize=draw(st.sampled_from(RESIZES)),
        fit=draw(st.sampled_from(FITS)),
        scale=scale,
        mean=tuple(draw(means) for _ in range(channels)),
        std=tuple(draw(stds) for _ in range(channels)),
        dtype=dtype,
    )


def picture(seed: int, *, levels: int = 256) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, levels, (9, 7, 3), np.uint8))


@settings(deadline=None, max_examples=300)
@given(contracts(), contracts(), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 256]))
def test_any_tensor_is_judged_alike(mine: Preprocess, other: Preprocess, seed: int, levels: int) -> None:
    shown = picture(seed, levels=levels)
    expected = mine.apply(shown)
    for got in (
        dataclasses.replace(other, size=mine.size).apply(shown),
        dataclasses.replace(mine, scale=other.scale, layout=other.layout).apply(shown),
        np.full(expected.shape, np.nan),
        expected.astype(np.float64)[..., ::-1],
        expected + np.float32(0.004),
        expected[..., :0],
    ):
        contract = mine.to_dict()
        assert name_mistake(expected, got, contract) == SCRIPT.name_mistake(expected, got, contract)


@settings(deadline=None, max_examples=200)
@given(contracts(), st.integers(0, 2**32 - 1), st.data())
def test_tensors_at_the_edge_of_agreement_are_judged_alike(
    contract: Preprocess, seed: int, data: st.DataObject
) -> None:
    expected, plain = contract.apply(picture(seed)), contract.to_dict()
    levels = data.draw(st.sampled_from([1, 2, 3]))
    moved = np.clip(np.asarray(contract.invert(expected)).astype(int) + levels, 0, 255).astype(np.uint8)
    got = contract.apply(Image.fromarray(moved))
    assert name_mistake(expected, got, plain) == SCRIPT.name_mistake(expected, got, plain)
    if contract.dtype == "float32" and levels <= 2:
        assert name_mistake(expected, got, plain)[0] == "ok"


IMAGENET = Preprocess(size=(6, 8), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("contract", "shown", "revealed"),
    [
        (IMAGENET, picture(1), SINGLE_CODES),
        (IMAGENET, picture(1).convert("L"), ("layout", "range", "scaled-twice", "normalisation", "raw")),
        (Preprocess(size=(6, 8)), picture(1), ("color", "layout", "range", "scaled-twice")),
        (Preprocess(size=(6, 8), color="L"), picture(1), ("range", "scaled-twice")),
        (Preprocess(size=(6, 8), scale=1.0, dtype="uint8"), picture(1), ("color", "layout")),
        (Preprocess(size=(6, 8), color="L", scale=1.0), picture(1), ()),
    ],
)
def test_a_picture_reveals_what_shows_on_it(
    contract: Preprocess, shown: Image.Image, revealed: tuple[str, ...]
) -> None:
    assert revealed_codes(contract.apply(shown), contract.to_dict()) == revealed


@settings(deadline=None, max_examples=100)
@given(contracts(), st.integers(0, 2**32 - 1))
def test_what_is_called_revealed_is_found(contract: Preprocess, seed: int) -> None:
    expected, plain = contract.apply(picture(seed)), contract.to_dict()
    made = {
        "color": lambda c: dataclasses.replace(c, color=c.color[::-1]),
        "layout": lambda c: dataclasses.replace(c, layout={"NCHW": "NHWC", "NHWC": "NCHW"}[c.layout]),
        "range": lambda c: dataclasses.replace(c, scale=1.0),
        "scaled-twice": lambda c: dataclasses.replace(c, scale=c.scale**2),
        "normalisation": lambda c: dataclasses.replace(c, mean=(0.0,), std=(1.0,)),
        "raw": lambda c: dataclasses.replace(c, scale=1.0, mean=(0.0,), std=(1.0,)),
    }
    if contract.dtype != "float32":
        return  # what saturates or is rounded cannot be undone: the mistake may then look like another
    for code in revealed_codes(expected, plain):
        assert name_mistake(expected, made[code](contract).apply(picture(seed)), plain)[0] == code

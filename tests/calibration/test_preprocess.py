from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.preprocess import FITS, RESIZES, Preprocess, describe_preprocess, preprocess_from_dict
from exporter.errors import RecipeError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int = 4, width: int = 6) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_tensor_is_scaled_normalised_and_laid_out() -> None:
    image = picture()
    found = Preprocess(size=(4, 6), mean=MEAN, std=STD).apply(image)
    expected = ((np.asarray(image) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    assert found.shape == (1, 3, 4, 6)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_layouts_and_colour_orders_are_permutations_of_each_other() -> None:
    image = picture()
    base = Preprocess(size=(4, 6)).apply(image)
    np.testing.assert_array_equal(
        Preprocess(size=(4, 6), layout="NHWC").apply(image), base.transpose(0, 2, 3, 1)
    )
    np.testing.assert_array_equal(Preprocess(size=(4, 6), color="BGR").apply(image), base[:, ::-1])


def test_mean_follows_the_order_of_the_channels() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    found = Preprocess(size=(2, 2), color="BGR", mean=(0.0, 0.0, 0.25)).apply(image)
    assert found[0, :, 0, 0].tolist() == [0.0, 0.0, 0.75]


def test_grey_pictures_have_one_channel() -> None:
    found = Preprocess(size=(2, 2), color="L").apply(Image.new("RGB", (8, 8), (10, 10, 10)))
    assert found.shape == (1, 1, 2, 2)
    np.testing.assert_allclose(found, 10 / 255, rtol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_that_pillow_reads_becomes_three_channels(mode: str) -> None:
    assert Preprocess(size=(3, 5)).apply(Image.new(mode, (7, 9))).shape == (1, 3, 3, 5)


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 32896], [65535, 257]], np.uint16))
    found = Preprocess(size=(2, 2), color="L", resize="nearest").apply(image)
    np.testing.assert_allclose(found[0, 0] * 255, [[0, 128], [255, 1]], atol=1e-4)


def test_transparent_pixels_are_black() -> None:
    found = Preprocess(size=(2, 2)).apply(Image.new("RGBA", (2, 2), (255, 255, 255, 0)))
    assert not found.any()


def test_crop_keeps_the_centre_and_the_aspect() -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    found = Preprocess(size=(4, 4), fit="crop", resize="nearest").apply(Image.fromarray(pixels))
    assert (found == 1.0).all()


@pytest.mark.parametrize("pad", [0, 114])
def test_letterbox_pads_both_sides(pad: int) -> None:
    image = Image.new("RGB", (8, 4), (255, 255, 255))
    found = Preprocess(size=(8, 8), fit="letterbox", pad=pad).apply(image)[0, 0]
    np.testing.assert_allclose(found[2:6], 1.0)
    np.testing.assert_allclose(found[[0, 1, 6, 7]], pad / 255, rtol=1e-6)


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 17)])
@pytest.mark.parametrize("given", [(1, 500), (500, 1), (13, 29)])
def test_any_picture_fits_any_size(fit: str, size: tuple[int, int], given: tuple[int, int]) -> None:
    assert Preprocess(size=size, fit=fit).apply(Image.new("RGB", given)).shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("dtype", "scale", "expected"), [("uint8", 1.0, [0, 255]), ("int8", 1.0, [-128, 127])]
)
def test_integers_are_rounded_and_saturated(dtype: str, scale: float, expected: list[int]) -> None:
    mean = 128.0 if dtype == "int8" else 0.0
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    found = Preprocess(size=(1, 2), scale=scale, mean=(mean,), dtype=dtype).apply(image)
    assert found.dtype == np.dtype(dtype)
    assert found[0, 0, 0].tolist() == expected


def test_the_contract_survives_json() -> None:
    contract = Preprocess(
        layout="NHWC",
        color="BGR",
        size=(32, 48),
        resize="bicubic",
        fit="letterbox",
        scale=1.0,
        mean=MEAN,
        std=STD,
        dtype="float16",
    )
    assert Preprocess.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    assert preprocess_from_dict(describe_preprocess(contract)) == contract
    assert describe_preprocess(None) == {"kind": "identity"}
    assert preprocess_from_dict(describe_preprocess(None)) is None
    assert preprocess_from_dict(None) is None


def test_a_single_mean_stands_for_every_channel() -> None:
    assert Preprocess(mean=(0.5,), std=(0.25,)) == Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert Preprocess.from_dict({"size": 32}).size == (32, 32)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"size": [4, 4], "layuot": "NCHW"}, "no key 'layuot'; fix: did you mean layout"),
        ({"size": [4, 4], "layout": "NCWH"}, "preprocess.layout is 'NCWH'; fix: did you mean 'NCHW'"),
        ({"size": [4, 4], "color": "RBG"}, "preprocess.color is 'RBG'"),
        ({"size": [4, 4], "mean": [0.1, 0.2]}, r"preprocess.mean has 2 values for 3 channel"),
        ({"size": [4, 4], "std": [0.1, 0.2, 0.0]}, "preprocess.std holds 0"),
        ({"size": [4, 4], "scale": 0}, "preprocess.scale is 0"),
        ({"size": [4, 4], "scale": float("nan")}, "preprocess.scale holds nan"),
        ({"size": [4, 4], "mean": "0.5"}, "preprocess.mean holds '0.5'"),
        ({"size": [4, 0]}, "preprocess.size is"),
        ({"size": [4, 4, 3]}, "preprocess.size is"),
        ({"size": [4.5, 4]}, "preprocess.size is"),
        ({"size": [4, 4], "pad": 300}, "preprocess.pad is 300"),
        ({"size": [4, 4], "resize": ["x"]}, "preprocess.resize is"),
        ({"size": [4, 4], "kind": "audio"}, "preprocess.kind is 'audio'"),
        ({}, "preprocess has no size"),
    ],
)
def test_impossible_contracts_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Preprocess.from_dict(table)
    assert caught.value.exit_code == 2


@st.composite
def contracts(draw: st.DrawFn) -> Preprocess:
    """Contracts of every layout, colour, fit and dtype that 8-bit pictures survive."""
    color = draw(st.sampled_from(["RGB", "BGR", "L"]))
    channels = 1 if color == "L" else 3
    dtype = draw(st.sampled_from(["float32", "uint8", "int8"]))
    floats = dtype == "float32"
    return Preprocess(
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        color=color,
        size=(draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        resize=draw(st.sampled_from(RESIZES)),
        fit=draw(st.sampled_from(FITS)),
        scale=draw(st.floats(1e-3, 10)) * draw(st.sampled_from([1, -1])) if floats else 1.0,
        mean=tuple(draw(st.floats(-3, 3)) for _ in range(channels)) if floats else 128.0 * (dtype == "int8"),
        std=tuple(draw(st.floats(0.05, 4)) for _ in range(channels)) if floats else 1.0,
        dtype=dtype,
        pad=draw(st.integers(0, 255)),
    )


@settings(deadline=None)
@given(contracts(), st.integers(0, 2**32 - 1))
def test_a_tensor_gives_back_the_picture_that_it_was_made_from(contract: Preprocess, seed: int) -> None:
    shape = contract.size if contract.color == "L" else (*contract.size, 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    tensor = contract.apply(image)
    inverted = contract.invert(tensor)
    assert (inverted.mode, inverted.tobytes()) == (image.mode, image.tobytes())
    np.testing.assert_array_equal(contract.apply(inverted), tensor)


def test_levels_that_no_picture_has_are_cut_off() -> None:
    contract = Preprocess(size=(1, 3), color="L", scale=1.0)
    tensor = np.array([[[[-20, 100.4, 300]]]], np.float32)
    assert np.asarray(contract.invert(tensor)).tolist() == [[0, 100, 255]]


@pytest.mark.parametrize(
    "tensor", [np.zeros((1, 3, 2, 3), np.float32), np.full((1, 3, 3, 2), np.nan, np.float32)]
)
def test_what_no_picture_becomes_is_not_inverted(tensor: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"no finite tensor of shape \(1, 3, 3, 2\)"):
        Preprocess(size=(3, 2)).invert(tensor)


@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_a_decoded_picture_is_plain_and_prepared_like_the_file(mode: str, color: str) -> None:
    given = picture(6, 5).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        given = Image.fromarray(np.asarray(given).astype(np.uint16) * 257)
    given.info["comment"] = "kept out"
    contract = Preprocess(size=(3, 4), color=color)
    decoded = contract.decode(given)
    assert decoded.mode == ("L" if color == "L" and mode in ("1", "L", "LA", "I;16", "I") else "RGB")
    # By way of RGB, luma is rounded once more: to a level.
    np.testing.assert_allclose(contract.apply(decoded), contract.apply(given), atol=1.01 / 255)


def test_a_decoded_picture_is_upright() -> None:
    given = picture(4, 6)
    exif = given.getexif()
    exif[0x0112] = 6
    content = io.BytesIO()
    given.save(content, "PNG", exif=exif)
    with Image.open(content) as stored:
        assert Preprocess(size=(4, 4)).decode(stored).size == (4, 6)

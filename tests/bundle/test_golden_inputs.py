"""Golden samples start from pictures on which mistakes show, and are exactly what the contract makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.dataset import ArrayDataset, Dataset, ListDataset
from calibration.preprocess import Preprocess
from calibration.sources import open_dataset
from exporter.artifacts import TensorSpec
from exporter.bundle.golden import GOLDEN_SAMPLES, GoldenInputs
from exporter.bundle.golden_inputs import choose_golden_inputs, read_golden_picture
from exporter.bundle.mistakes import SINGLE_CODES
from exporter.errors import InputError, IntegrityError

IMAGENET = Preprocess(size=(6, 8), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pixels(seed: int, height: int = 9, width: int = 11, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def folder_of(root: Path, *pictures: Image.Image, suffix: str = "png") -> Path:
    folder = root / "pictures"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:02d}.{suffix}")
    return folder


def opened(folder: Path, contract: Preprocess) -> Dataset:
    inputs = (TensorSpec("image", contract.dtype, contract.shape),)
    config = {"source": "images", "path": folder.name}
    return open_dataset(config, root=folder.parent, inputs=inputs, preprocess=contract)


def picture_of(golden: GoldenInputs, number: int, name: str = "image") -> Image.Image:
    return Image.open(io.BytesIO(golden.raw[number][name]))


def require_exact(golden: GoldenInputs, contract: Preprocess, name: str = "image") -> None:
    assert len(golden.samples) == len(golden.raw) > 0
    for number, sample in enumerate(golden.samples):
        with picture_of(golden, number, name) as picture:
            assert picture.info == {}
            np.testing.assert_array_equal(contract.apply(picture), sample[name])
            assert sample[name].dtype == contract.dtype


# --- pictures --------------------------------------------------------------------------------------------


def test_the_first_pictures_of_a_folder_are_the_golden_ones(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(Image.fromarray(pixels(seed)) for seed in range(6)))
    golden, odd = choose_golden_inputs(opened(folder, IMAGENET), IMAGENET)
    assert odd == ()
    assert len(golden.samples) == GOLDEN_SAMPLES
    require_exact(golden, IMAGENET)
    for number in range(GOLDEN_SAMPLES):
        np.testing.assert_array_equal(np.asarray(picture_of(golden, number)), pixels(number))
    assert golden.reveals == (*SINGLE_CODES, "resize")


def test_pictures_in_colour_are_preferred_to_grey_ones(tmp_path: Path) -> None:
    shown = [Image.fromarray(pixels(seed)) for seed in range(8)]
    for number in (0, 1, 4):
        shown[number] = shown[number].convert("L").convert("RGB")
    golden, _ = choose_golden_inputs(opened(folder_of(tmp_path, *shown), IMAGENET), IMAGENET)
    for number, chosen in enumerate((2, 3, 5, 6)):
        np.testing.assert_array_equal(np.asarray(picture_of(golden, number)), pixels(chosen))


def test_grey_pictures_are_taken_where_there_are_no_others_and_it_is_said(tmp_path: Path) -> None:
    shown = [Image.fromarray(pixels(seed)).convert("L") for seed in range(3)]
    golden, odd = choose_golden_inputs(opened(folder_of(tmp_path, *shown), IMAGENET), IMAGENET)
    assert (len(golden.samples), odd) == (3, ())
    assert golden.reveals == ("layout", "range", "scaled-twice", "normalisation", "raw", "resize")
    require_exact(golden, IMAGENET)


def test_files_of_any_kind_become_plain_pictures_of_bounded_size(tmp_path: Path) -> None:
    wide = Image.fromarray(pixels(1, 300, 1200))
    exif = wide.getexif()
    exif[0x0112] = 6  # turned by a quarter
    (tmp_path / "pictures").mkdir()
    wide.save(tmp_path / "pictures" / "0.jpg", exif=exif)
    Image.fromarray(pixels(2, 40, 30, 4)).save(tmp_path / "pictures" / "1.png")
    golden, _ = choose_golden_inputs(opened(tmp_path / "pictures", IMAGENET), IMAGENET)
    assert [picture_of(golden, number).size for number in range(2)] == [(128, 512), (30, 40)]
    assert {picture_of(golden, number).mode for number in range(2)} == {"RGB"}
    require_exact(golden, IMAGENET)


@pytest.mark.parametrize(
    "contract",
    [
        Preprocess(size=(7, 5), color="BGR", layout="NHWC", scale=1.0, mean=(103.9, 116.8, 123.7)),
        Preprocess(size=(5, 9), fit="letterbox", pad=114, resize="nearest"),
        Preprocess(size=(5, 9), fit="crop", resize="bicubic", dtype="float16"),
        Preprocess(size=(6, 6), scale=1.0, dtype="uint8"),
    ],
)
def test_any_contract_gives_exactly_the_golden_tensor(tmp_path: Path, contract: Preprocess) -> None:
    folder = folder_of(tmp_path, *(Image.fromarray(pixels(seed)) for seed in range(5)))
    golden, _ = choose_golden_inputs(opened(folder, contract), contract)
    require_exact(golden, contract)
    assert {"color", "layout", "resize"} <= set(golden.reveals)


def test_colours_stay_where_a_network_wants_grey(tmp_path: Path) -> None:
    contract = Preprocess(size=(6, 8), color="L")
    folder = folder_of(tmp_path, Image.fromarray(pixels(0)), Image.fromarray(pixels(1)).convert("L"))
    golden, _ = choose_golden_inputs(opened(folder, contract), contract)
    assert [picture_of(golden, number).mode for number in range(2)] == ["RGB", "L"]
    require_exact(golden, contract)


# --- arrays ----------------------------------------------------------------------------------------------


def test_prepared_arrays_are_turned_back_into_pictures() -> None:
    shown = [Image.fromarray(pixels(seed, 6, 8)) for seed in range(5)]
    noise = np.float32(0.001)  # prepared by somebody else, who rounds otherwise
    data = ArrayDataset({"image": np.concatenate([IMAGENET.apply(picture) + noise for picture in shown])})
    golden, odd = choose_golden_inputs(data, IMAGENET)
    assert odd == ()
    require_exact(golden, IMAGENET)
    for number, sample in enumerate(golden.samples):
        np.testing.assert_array_equal(np.asarray(picture_of(golden, number)), np.asarray(shown[number]))
        np.testing.assert_allclose(sample["image"], IMAGENET.apply(shown[number]))
    assert golden.reveals == SINGLE_CODES, "of the size that is wanted, they are never resized"


def test_what_no_picture_gives_is_cut_off_and_recorded_as_it_became() -> None:
    random = np.random.default_rng(0).normal(0, 5, (4, 1, 3, 6, 8)).astype(np.float32)
    golden, _ = choose_golden_inputs(ListDataset([{"image": array} for array in random]), IMAGENET)
    require_exact(golden, IMAGENET)
    assert max(float(np.abs(sample["image"]).max()) for sample in golden.samples) < 2.7


def test_other_inputs_keep_their_values() -> None:
    samples = [
        {"mask": np.array([[seed]]), "image": IMAGENET.apply(Image.fromarray(pixels(seed)))}
        for seed in range(4)
    ]
    golden, _ = choose_golden_inputs(ListDataset(samples), IMAGENET)
    assert [list(sample) for sample in golden.samples] == [["mask", "image"]] * 4
    assert [int(sample["mask"][0, 0]) for sample in golden.samples] == [0, 1, 2, 3]
    assert all(list(raw) == ["image"] for raw in golden.raw)


def test_a_sample_that_is_not_finite_is_passed_over() -> None:
    samples = [{"image": IMAGENET.apply(Image.fromarray(pixels(seed)))} for seed in range(5)]
    samples[1]["image"][0, 0, 0, 0] = np.inf
    golden, _ = choose_golden_inputs(ListDataset(samples), IMAGENET)
    for number, chosen in enumerate((0, 2, 3, 4)):
        np.testing.assert_array_equal(golden.samples[number]["image"], samples[chosen]["image"])


# --- no pictures -----------------------------------------------------------------------------------------


def test_tensors_without_a_contract_stay_as_they_are() -> None:
    samples = [{"x": np.array([[float(number)]])} for number in range(9)]
    golden, odd = choose_golden_inputs(ListDataset(samples), None)
    assert odd == ()
    assert [float(sample["x"][0, 0]) for sample in golden.samples] == [0, 1, 2, 3]
    assert (golden.raw, golden.reveals) == ((), ())


@pytest.mark.parametrize(
    ("arrays", "who"),
    [
        ({"image": np.zeros((1, 1, 6, 8), np.float32)}, "no input takes that"),
        ({"image": np.zeros((1, 3, 6, 8), np.float64)}, "no input takes that"),
        (
            {"left": np.zeros((1, 3, 6, 8), np.float32), "right": np.zeros((1, 3, 6, 8), np.float32)},
            "left and right take that",
        ),
        ({"image": np.full((1, 3, 6, 8), np.nan, np.float32)}, "no sample is finite"),
    ],
)
def test_a_contract_that_makes_no_input_is_said(arrays: dict[str, np.ndarray], who: str) -> None:
    golden, odd = choose_golden_inputs([arrays], IMAGENET)
    assert golden.raw == ()
    assert len(golden.samples) == 1
    assert odd == (
        f"golden vectors start from tensors, not from pictures: preprocess makes float32[1, 3, 6, 8], and {who}; "
        "a mistake in an app's preprocessing will not show",
    )


# --- reading ---------------------------------------------------------------------------------------------


def test_only_plain_pictures_inside_the_folder_are_read(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "good.png")
    np.testing.assert_array_equal(np.asarray(read_golden_picture(tmp_path, "good.png")), pixels(0))
    Image.fromarray(pixels(0)).save(tmp_path / "jpeg.png", "JPEG")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-40])
    Image.fromarray(pixels(0, channels=4)).save(tmp_path / "alpha.png")
    Image.fromarray(pixels(0)).save(tmp_path / "dotted.png", dpi=(300, 300))
    for name in ("jpeg.png", "cut.png"):
        with pytest.raises(InputError, match=rf"{name} is not a PNG that can be read"):
            read_golden_picture(tmp_path, name)
    for name in ("alpha.png", "dotted.png"):
        with pytest.raises(IntegrityError, match=rf"{name} is not a plain 8-bit PNG"):
            read_golden_picture(tmp_path, name)
    with pytest.raises(IntegrityError, match="outside its folder"):
        read_golden_picture(tmp_path, "../good.png")
    with pytest.raises(InputError, match="does not exist"):
        read_golden_picture(tmp_path, "other.png")

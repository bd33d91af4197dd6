"""Weights and calibration data that no quantiser can use (exit 13, 14, 15)."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from fault_ground import SAMPLES, Ground
from PIL import Image

from exporter.errors import GateError
from exporter.model.source import SourceModel

Load = Callable[..., SourceModel]


def _samples() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(SAMPLES, 1, 8, 8)).astype(np.float32)


# --- weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e30", "-1e30"])
def test_absurd_weights_are_named_with_tensor_and_index(ground: Ground, load: Load, value: str) -> None:
    net = ground.folder / "net.py"
    poison = f"    net = Net()\n    net.second.weight.data[2, 1, 0, 2] = float('{value}')\n    return net"
    net.write_text(net.read_text().replace("    return Net()", poison))
    with pytest.raises(GateError, match=r"second\.weight\[2, 1, 0, 2\] is .*\(1 such"):
        load(ground)


def test_absurd_weights_end_a_build(ground: Ground) -> None:
    net = ground.folder / "net.py"
    poison = "    net = Net()\n    net.head.bias.data[:] = float('nan')\n    return net"
    net.write_text(net.read_text().replace("    return Net()", poison))
    failure = ground.fails(14, "weight head.bias[0] is nan (5 such in this tensor)")
    assert failure.details == {"tensor": "head.bias", "index": [0]}


def test_a_mask_in_a_buffer_is_no_absurd_weight(ground: Ground, load: Load) -> None:
    net = ground.folder / "net.py"
    masked = "    net = Net()\n    net.register_buffer('mask', torch.full((4, 4), -torch.inf).triu(1))\n    return net"
    net.write_text(net.read_text().replace("    return Net()", masked))
    assert load(ground).module is not None


# --- calibration arrays ----------------------------------------------------------------------------------


def test_no_samples(ground: Ground) -> None:
    ground.write_samples(np.zeros((0, 1, 8, 8), np.float32))
    ground.fails(13, "0")


@pytest.mark.parametrize(
    ("arrays", "mentions"),
    [
        ({"images": _samples()}, ("'image'", "'images'", "rename")),
        ({"image": _samples().transpose(0, 2, 3, 1)}, ("sample 0", "NHWC")),
        ({"image": _samples()[:, 0]}, ("(batch, 1, 8, 8)",)),
        ({"image": np.zeros((4, 1, 9, 8), np.float32)}, ("got (1, 1, 9, 8)", "axis 2 from 9 to 8")),
        ({"image": _samples().astype(np.float64)}, ("expected float32, got float64",)),
        ({"image": np.zeros((4, 1, 8, 8), np.uint8)}, ("raw pixels",)),
        ({"image": _samples(), "extra": np.zeros(SAMPLES)}, ("'extra'",)),
        ({"image": np.ones((4, 1, 8, 8), np.float32)}, ("every element of input 'image' is 1",)),
    ],
    ids=["name", "layout", "rank", "shape", "dtype", "pixels", "extra", "constant"],
)
def test_data_that_does_not_fit_the_model(
    ground: Ground, arrays: dict[str, np.ndarray], mentions: tuple[str, ...]
) -> None:
    ground.write_samples(**arrays)
    ground.fails(13, *mentions)


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "-Inf")])
def test_one_sample_that_is_not_finite(ground: Ground, value: float, shown: str) -> None:
    array = _samples()
    array[11, 0, 3, 4] = value
    ground.write_samples(array)
    ground.fails(13, f"sample 11, input 'image': {shown} at (0, 0, 3, 4)")


def test_nothing_finite(ground: Ground) -> None:
    ground.write_samples(np.full((4, 1, 8, 8), np.nan, np.float32))
    ground.fails(13, "sample 0", "NaN")


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [1e4, 1e10, 3e38])
def test_one_outlier_cannot_vouch_for_the_samples_it_ruins(ground: Ground, value: float) -> None:
    """Its own answer is nearly right, and drowns the error of all others in any pooled figure."""
    array = _samples()
    array[5, 0, 0, 0] = value
    ground.write_samples(array)
    failure = ground.fails(14, "min_sqnr_db is 10 dB")
    assert failure.details["artifacts"][0]["evidence"]["fidelity"]["sqnr_db"] < 5
    if value > 1e5:
        _, _, stderr = ground.build()
        assert "sample 5 of input 'image' reaches" in stderr


def test_a_header_that_claims_terabytes(ground: Ground) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    claim = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(256)
    with zipfile.ZipFile(ground.folder / "calibration.npz", "w") as archive:
        archive.writestr("image.npy", claim)
    ground.fails(15, "256000000000000")


def test_a_truncated_archive(ground: Ground) -> None:
    path = ground.folder / "calibration.npz"
    path.write_bytes(path.read_bytes()[:-300])
    ground.fails(13, "calibration.npz cannot be read")


def test_a_missing_file_and_an_empty_pattern(ground: Ground) -> None:
    ground.write_recipe(data='calibration = { source = "npz", path = "calibratoin.npz" }')
    ground.fails(13, "calibratoin.npz", "calibration.npz")
    (ground.folder / "pictures").mkdir()
    (ground.folder / "pictures" / "one.txt").touch()
    ground.write_recipe(data=_PICTURES)
    ground.fails(13, "matches 0 files", "1 .txt")


def test_no_data_at_all(ground: Ground) -> None:
    ground.write_recipe(data="")
    ground.fails(13, "onnx:static_wi8_ai8 needs calibration data")


# --- pictures --------------------------------------------------------------------------------------------

_PICTURES = """calibration = { source = "images", path = "pictures" }
preprocess = { size = [8, 8], color = "L" }"""


@pytest.fixture
def pictures(ground: Ground) -> Ground:
    """Return a ground that calibrates on 200 pictures, the 138th of which is cut short."""
    folder = ground.folder / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(200):
        content = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (8, 8), np.uint8)).save(content, "PNG")
        cut = 60 if number == 137 else None
        (folder / f"{number:03d}.png").write_bytes(content.getvalue()[:cut])
    ground.write_recipe(data=_PICTURES)
    return ground


def test_one_corrupt_picture_among_200_is_named(pictures: Ground) -> None:
    pictures.fails(13, "137.png", "skip_bad")


def test_a_corrupt_picture_may_be_skipped_and_is_told(pictures: Ground) -> None:
    pictures.write_recipe(data=_PICTURES.replace('"pictures" }', '"pictures", skip_bad = 1 }'))
    report = pictures.succeeds()
    assert report["data"]["calibration_samples"] == 199
    assert "137.png" in report["data"]["evaluated_on"]

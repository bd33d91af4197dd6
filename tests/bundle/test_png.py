"""PNG files that every reader reads, and that are the same bytes everywhere."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from exporter.bundle.png import encode_png


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_reader_finds_the_pixels_and_nothing_else(
    height: int, width: int, is_grey: bool, seed: int
) -> None:
    shape = (height, width) if is_grey else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.mode, image.info) == ("L" if is_grey else "RGB", {})
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("width", [65534, 65535, 65536, 140000])
def test_more_than_one_stored_block_is_read(width: int) -> None:
    pixels = (np.arange(width) % 251).astype(np.uint8)[np.newaxis]
    content = encode_png(pixels)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    # One line of a filter byte and the pixels, in blocks of at most 65535 bytes with five bytes in front of each.
    blocks = -(-(width + 1) // 65535)
    assert len(content) == 8 + (12 + 13) + (12 + 2 + 5 * blocks + width + 1 + 4) + 12


def test_nothing_of_the_bytes_is_left_to_a_library() -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    content = encode_png(pixels)
    (length,) = struct.unpack(">I", content[33:37])
    stream = content[41 : 41 + length]
    assert stream[:3] == b"\x78\x01\x01", "stored, and the last block"
    assert len(zlib.decompress(stream)) == 4 * (1 + 5 * 3)
    assert (
        hashlib.sha256(content).hexdigest()
        == "844d555b3d21bca334952d4999bbd19ec9bdb90337058c6581555071d07a59b9"
    )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2,), np.uint8),
        np.zeros((0, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no 8-bit grey or RGB picture"):
        encode_png(pixels)

"""Pictures as PNG files whose bytes depend on their pixels alone.

Compressed bytes differ from one zlib to the next, so that equal builds would not be equal. Here the pixels are stored
(RFC 1951, block type 0): a golden picture then takes about what its float tensor takes a quarter or all of.
Specification: W3C PNG, third edition; RFC 1950 for the frame around the blocks.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}
_LARGEST_BLOCK = 0xFFFF
_ZLIB_HEADER = b"\x78\x01"


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return `pixels` [height, width] (grey) or [height, width, 3] (RGB) as an 8-bit PNG without any metadata.

    Raises ValueError for another shape or dtype.
    """
    planes = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or planes.ndim != 3 or planes.shape[2] not in _COLOR_TYPES or not pixels.size:
        raise ValueError(f"no 8-bit grey or RGB picture: {pixels.dtype} of shape {pixels.shape}")
    height, width, channels = planes.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line starts with its filter: 0, none
    lines[:, 1:] = planes.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", _stored(lines.tobytes())),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stored(content: bytes) -> bytes:
    """Return `content` as a zlib stream that compresses nothing."""
    parts = [_ZLIB_HEADER]
    for start in range(0, len(content), _LARGEST_BLOCK):
        block = content[start : start + _LARGEST_BLOCK]
        is_last = start + len(block) == len(content)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join((*parts, struct.pack(">I", zlib.adler32(content))))

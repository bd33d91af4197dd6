"""The bytes of a finished `.tflite`: equal vectors stored once, constants called by short numbers.

A per-channel scale brings a zero point of eight bytes, always 0 and as many as there are channels, for weight
and bias alike: in a small network they outweigh a third of the weights. A flatbuffer may refer to one vector
from many tables, so each distinct vector is written once. Readers see the same model.
"""

from __future__ import annotations

import hashlib
from typing import Any

import flatbuffers
import numpy as np

_FILE_IDENTIFIER = b"TFL3"


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that writes a numpy vector once, however many tables refer to it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, int, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        """Return the offset of a vector that holds `x`."""
        key = (x.dtype.str, x.size, hashlib.sha256(np.ascontiguousarray(x).data).digest())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


def pack(model: Any) -> bytes:
    """Return the flatbuffer of `model` (`ModelT`, changed): nothing stored twice, constants named by number.

    Inputs, outputs and activations keep their names; weights and biases lose theirs, which no runtime reads.
    """
    graph = model.subgraphs[0]
    numbered = 0
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            tensor.name = str(numbered).encode()
            numbered += 1
    builder = _SharingBuilder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())

"""Say what a file really is, from its first bytes, whatever its extension claims."""

from __future__ import annotations

import json
import struct
from pathlib import Path

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (PyTorch .pt, .pt2 or .npz)"),
    (b"\x80\x02", "a pickle (old PyTorch file)"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run: git lfs pull)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<!DOCTYPE", "a web page (a failed download?)"),
    (b"<html", "a web page (a failed download?)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "an ELF program"),
)


def describe_content(path: Path) -> str:
    """Return a phrase for people that says what `path` looks like."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if head[4:8] == b"TFL3":
        return "a TFLite model"
    if head[4:8] == b"ORTM":
        return "an ORT-format model"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if _safetensors_length(head, path.stat().st_size) is not None:
        return "a safetensors file"
    if head[:1] == b"\x08" and (b"\x12" in head[:12] or b"\x3a" in head[:4]):  # ir_version, producer or graph
        return "a protobuf message (ONNX)"
    if head and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return f"text beginning {head[:24].decode('ascii')!r}"
    return "binary data of no kind this tool knows"


def _safetensors_length(head: bytes, size: int) -> int | None:
    if len(head) < 9:
        return None
    (length,) = struct.unpack("<Q", head[:8])
    return int(length) if head[8:9] == b"{" and 2 <= length <= max(size, 1) * 100 else None


def safetensors_shortfall(path: Path) -> str | None:
    """Return how much of a `.safetensors` file is missing, or `None` if its length fits its header."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(9)
        length = _safetensors_length(head, size)
        if length is None:
            return None
        if 8 + length > size:
            return f"its header alone needs {8 + length} bytes, the file has {size}"
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            end = max(
                (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"),
                default=0,
            )
        except (ValueError, KeyError, TypeError, IndexError):
            return "its header is not readable JSON"
    expected = 8 + length + end
    return f"it has {size} of {expected} bytes" if size < expected else None

"""What a killed training goes on from: whole files of plain data, each named by its own digest.

A checkpoint is one `.safetensors` file (tensors, and JSON in its header); no pickle is ever read. Its name
ends in the SHA-256 of its bytes, so that a torn or flipped file is known for what it is, and the file before
it is used: the two newest are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from exporter.system.files import digest, disk_errors

_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{10})-([0-9a-f]{64})\.safetensors")
_UNFINISHED = ".checkpoint-"
_FACTS = "checkpoint"
_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a training's future follows from: `tensors` by name, and `facts`, which are JSON data."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def write_checkpoint(folder: Path, number: int, key: str, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` as the `number`-th of the training `key` and return its path; drop all but the newest two.

    The file is written beside, synced and renamed: it is whole or absent. Tensors go to disk one by one; no
    second copy of them is made on the CPU. Raises `ResourceError` for a full disk.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                sha256 = _write_safetensors(stream.write, key, checkpoint)
                stream.flush()
                os.fsync(stream.fileno())
            path = folder / f"checkpoint-{number:010d}-{sha256}.safetensors"
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync(folder)
    for old in checkpoints(folder)[_KEPT:]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, newest first; whether they are whole is not known yet."""
    found = [path for path in folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def newest(folder: Path, key: str, say: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint of the training `key`, or `None`; `say` hears why others are passed over.

    What a killed process left half-written, and what is damaged, is removed.
    """
    for leftover in sorted(folder.glob(f"{_UNFINISHED}*")):
        leftover.unlink()
    for path in checkpoints(folder):
        match = _NAME.fullmatch(path.name)
        if match is None or digest(path) != match[2]:
            say(f"checkpoint {path} is damaged (its bytes are not those that were written) and is not used")
            path.unlink()
        elif _facts(path)["key"] == key:
            return path
        else:
            say(f"checkpoint {path} is of another training (other settings, data or weights) and is not used")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in `path`, which `newest` has found whole."""
    with safe_open(path, framework="pt") as file:
        return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, _facts(path))  # noqa: SIM118


def decode(content: bytes) -> Checkpoint:
    """Return the checkpoint whose file has the bytes `content`."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return Checkpoint(load(content), json.loads(header["__metadata__"][_FACTS]))


def _facts(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[_FACTS])
        return facts


def clear(folder: Path) -> None:
    """Remove `folder` with all checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _write_safetensors(write: Callable[[Any], object], key: str, checkpoint: Checkpoint) -> str:
    """Write the safetensors layout (8-byte length, JSON header, tensors end to end) and return its SHA-256.

    Layout: https://huggingface.co/docs/safetensors, section "Format".
    """
    header: dict[str, Any] = {"__metadata__": {_FACTS: json.dumps({**checkpoint.facts, "key": key})}}
    offset = 0
    # Widest items first, as the format's own writer orders them, so that every tensor starts aligned.
    names = sorted(checkpoint.tensors, key=lambda name: (-checkpoint.tensors[name].element_size(), name))
    for name in names:
        tensor = checkpoint.tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    state = hashlib.sha256()
    for part in (struct.pack("<Q", len(encoded)), encoded):
        state.update(part)
        write(part)
    for name in names:
        content = raw_bytes(checkpoint.tensors[name])
        state.update(content)
        write(content)
    return state.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of `tensor` in row-major order."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

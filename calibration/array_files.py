"""Reading `.npy` and `.npz` files that may be damaged or hostile.

Nothing is unpickled, and nothing is allocated on a header's word alone.

Knows the NumPy file format (numpy.lib.format, versions 1 and 2) and ZIP. Must not know models or datasets.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from exporter.arrays import Array
from exporter.errors import CalibrationError, ResourceError, UnsafeError

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BLOCK = 1 << 20
_HIGHEST_DEFLATE_RATIO = 1032
_LARGEST_WITHOUT_FIGURES = 1 << 40
_DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npy(path: Path) -> Array:
    """Return the array in a `.npy` file, memory-mapped read-only.

    Raises UnsafeError for pickled objects, ResourceError for a header that claims more than memory holds,
    CalibrationError for a file that is damaged, truncated or not `.npy`.
    """
    try:
        with path.open("rb") as file:
            dtype, shape, _, claimed = _read_header(file, str(path))
            held = os.fstat(file.fileno()).st_size - file.tell()
        _check_claim(claimed, held, str(path))
        if claimed == 0:
            return np.zeros(shape, dtype)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGE as error:
        raise _damaged(str(path), error) from error
    if array.nbytes != claimed:
        raise CalibrationError(f"{path} changed while it was read", fix="try again")
    return np.asarray(array)


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays in a `.npz` file, by name, checksums verified. Raises as `read_npy` does."""
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            _check_memory(sum(entry.file_size for entry in archive.infolist()), str(path))
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    arrays[entry.filename.removesuffix(".npy")] = _read_entry(archive, entry, path)
    except MemoryError as error:
        raise ResourceError(f"{path} does not fit in memory", fix="store fewer samples") from error
    except _DAMAGE as error:
        raise _damaged(str(path), error) from error
    return arrays


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Array:
    where = f"{path}:{entry.filename.removesuffix('.npy')}"
    if entry.file_size > _HIGHEST_DEFLATE_RATIO * max(entry.compress_size, 1) + 64:
        raise ResourceError(
            f"{where} claims {entry.file_size} bytes from {entry.compress_size} compressed ones",
            fix="write the file again",
        )
    with archive.open(entry) as file:
        dtype, shape, fortran, claimed = _read_header(file, where)
        held = entry.file_size - file.tell()
        _check_claim(claimed, held, where)
        array = np.empty(shape[::-1] if fortran else shape, dtype)
        if claimed:
            _fill(file, array.reshape(-1).view(np.uint8), where)
        # The checksum is compared when the entry is read to its end.
        file.read()
    return array.T if fortran else array


def _fill(file: IO[bytes], target: Array, where: str) -> None:
    filled = 0
    while filled < target.size:
        block = file.read(min(target.size - filled, _BLOCK))
        if not block:
            raise CalibrationError(
                f"{where} is truncated: {filled} of {target.size} bytes", fix="write the file again"
            )
        target[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
        filled += len(block)


def _read_header(file: IO[bytes], where: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Return (dtype, shape, whether in Fortran order, bytes of data that follow); UnsafeError for objects."""
    version = np.lib.format.read_magic(file)
    reader = _READERS.get(version)
    if reader is None:
        raise CalibrationError(
            f"{where}: .npy version {version} is not plain numbers", fix="save plain arrays with numpy.save"
        )
    try:
        shape, fortran, dtype = reader(file)
    except (MemoryError, tokenize.TokenError) as error:
        # What Python's parser raises for headers nested too deep, or cut inside a bracket.
        raise _damaged(where, error) from error
    if dtype.hasobject:
        raise UnsafeError(
            f"{where} holds pickled Python objects, which run code when read", fix="save plain numeric arrays"
        )
    if dtype.names is not None or dtype.kind not in "biufSU":
        raise CalibrationError(f"{where} holds {dtype}, not numbers", fix="save plain numeric arrays")
    if any(axis < 0 for axis in shape):
        raise CalibrationError(f"{where}: the header claims shape {shape}", fix="write the file again")
    claimed = dtype.itemsize
    for axis in shape:
        claimed *= axis
    return dtype, shape, fortran, claimed


def _check_memory(claimed: int, where: str) -> None:
    if claimed > _memory_bytes():
        raise ResourceError(
            f"{where}: its header claims {claimed} bytes, this machine has {_memory_bytes()} of memory",
            fix="check where the file comes from, or store fewer samples",
        )


def _check_claim(claimed: int, held: int, where: str) -> None:
    _check_memory(claimed, where)
    if claimed > held:
        raise CalibrationError(
            f"{where} is truncated: {held} of the {claimed} bytes that its header claims",
            fix="write or copy the file again",
        )


def _memory_bytes() -> int:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return _LARGEST_WITHOUT_FIGURES
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _damaged(where: str, error: BaseException) -> CalibrationError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return CalibrationError(f"{where} cannot be read: {reason}", fix="write or copy the file again")

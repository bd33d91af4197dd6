from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.array_files import read_npy, read_npz
from exporter.errors import CalibrationError, EdgeError, ResourceError, UnsafeError

PLANTED: list[str] = []


class Planted:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return PLANTED.append, ("ran",)


def npy_header(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = struct.pack("<H", len(text)) if version == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def good_npz(tmp_path: Path, *, compressed: bool) -> Path:
    path = tmp_path / "good.npz"
    arrays = {"image": np.arange(60, dtype=np.float32).reshape(5, 12), "label": np.arange(5)}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_plain_arrays_are_read(tmp_path: Path, compressed: bool) -> None:
    arrays = read_npz(good_npz(tmp_path, compressed=compressed))
    assert sorted(arrays) == ["image", "label"]
    np.testing.assert_array_equal(arrays["image"], np.arange(60, dtype=np.float32).reshape(5, 12))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "u1", "?", "<f2"])
def test_both_kinds_give_what_was_saved(tmp_path: Path, order: str, dtype: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", a=array, empty=array[:0], one=array[0, 0, 0])
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)
    found = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["a"], array)
    assert found["empty"].shape == (0, 3, 4)
    assert found["one"].shape == ()


def test_npy_is_mapped_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        file.write(npy_header("(1000, 1048576)"))
        file.truncate(file.tell() + 4 * 1000 * 1048576)
    array = read_npy(path)
    assert array.shape == (1000, 1048576)
    assert not array.flags.writeable
    assert array[999, 0] == 0


def test_pickled_arrays_are_refused_and_their_code_does_not_run(tmp_path: Path) -> None:
    objects = np.array([Planted(), Planted()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", image=objects)
    for read, name in ((read_npy, "a.npy"), (read_npz, "a.npz")):
        with pytest.raises(UnsafeError, match=r"a\.np.* holds pickled Python objects") as caught:
            read(tmp_path / name)
        assert caught.value.exit_code == 11
    assert PLANTED == []


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(99999999999999999999999999,)", "(1048576, 1048576, 1048576)"]
)
def test_a_header_that_claims_terabytes_is_refused_before_anything_is_allocated(
    tmp_path: Path, shape: str
) -> None:
    npy = tmp_path / "a.npy"
    npy.write_bytes(npy_header(shape) + bytes(64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("image.npy", npy_header(shape) + bytes(64))
    for read, path in ((read_npy, npy), (read_npz, tmp_path / "a.npz")):
        with pytest.raises(ResourceError, match=r"its header claims [0-9]{13,} bytes") as caught:
            read(path)
        assert caught.value.exit_code == 15
        assert path.name in caught.value.cause


def test_a_zip_bomb_is_refused_by_its_claim(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy_header("(16,)") + bytes(64))
    data = bytearray(path.read_bytes())
    # The central directory's uncompressed size: 24 bytes into its record.
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", 0xFFFFFF00)
    path.write_bytes(bytes(data))
    with pytest.raises(ResourceError, match=r"bomb\.npz:image claims 4294967040 bytes from \d+ compressed"):
        read_npz(path)


def test_a_truncated_npy_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cut.npy"
    np.save(path, np.zeros(1000, np.float32))
    path.write_bytes(path.read_bytes()[:-1600])
    with pytest.raises(CalibrationError, match=r"cut\.npy is truncated: 2400 of the 4000 bytes") as caught:
        read_npy(path)
    assert caught.value.exit_code == 13


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 and no more",
        b"not an array at all",
        npy_header("(-3,)"),
        npy_header("'abc'"),
        npy_header("(2,)", "'<c8'"),
        npy_header("(2,)", "[('a', '<f4')]"),
        npy_header("(2,)", "'nonsense'"),
        npy_header("(2,)", version=3),
        npy_header("(" * 3000),
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_anything_else_names_the_file(tmp_path: Path, content: bytes) -> None:
    npy = tmp_path / "odd.npy"
    npy.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"odd\.npy"):
        read_npy(npy)
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("image.npy", content)
    with pytest.raises(CalibrationError, match=r"odd\.npz"):
        read_npz(tmp_path / "odd.npz")


def test_a_folder_and_a_missing_file_are_no_arrays(tmp_path: Path) -> None:
    for read in (read_npy, read_npz):
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(CalibrationError, match="cannot be read"):
                read(path)


@pytest.mark.parametrize("compressed", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_noticed_or_harmless(tmp_path: Path, compressed: bool, data: st.DataObject) -> None:
    good = good_npz(tmp_path, compressed=compressed)
    expected = read_npz(good)
    content = bytearray(good.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    bad = tmp_path / "bad.npz"
    bad.write_bytes(bytes(content))
    try:
        found = read_npz(bad)
    except EdgeError as error:
        assert error.exit_code in (13, 15)
        assert "bad.npz" in error.cause
    else:
        # What is not under a checksum: names, dates and flags of the archive.
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected.get(name, array))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_npy_is_always_refused(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(40, dtype=np.float32))
    content = buffer.getvalue()
    path = tmp_path / "cut.npy"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CalibrationError, match=r"cut\.npy"):
        read_npy(path)

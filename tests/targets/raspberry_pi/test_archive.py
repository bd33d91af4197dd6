"""The tarball: whole, deterministic, independent of any compressor, and runnable where it is unpacked."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pip_ground import pack, with_manifest

from exporter.bundle.manifest import check_manifest
from targets.raspberry_pi.archive import gzip_stored, tarball_of


@given(st.binary(max_size=300), st.integers(0, 3))
@example(b"", 0)
@example(b"x" * 0xFFFF, 0)
@example(b"x" * 0x10000, 0)
def test_gzip_reads_what_was_stored(content: bytes, blocks: int) -> None:
    whole = content + b"y" * 0xFFFF * blocks
    packed = gzip_stored(whole)
    assert gzip.decompress(packed) == whole
    assert packed[:10] == bytes.fromhex("1f8b0800000000 0000ff")
    assert len(packed) == len(whole) + 18 + 5 * max(1, -(-len(whole) // 0xFFFF))


@given(st.binary(min_size=1, max_size=300), st.data())
def test_gzip_notices_every_flipped_bit_of_the_content(content: bytes, data: st.DataObject) -> None:
    packed = bytearray(gzip_stored(content))
    packed[data.draw(st.integers(15, 14 + len(content)))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((OSError, EOFError, zlib.error)):
        gzip.decompress(bytes(packed))


def test_members_have_neither_time_nor_owner(tmp_path: Path) -> None:
    long = "n" * 120
    for name in ("b/run.py", "a.txt", f"b/{long}/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a.txt").chmod(0o600)
    content = tarball_of(tmp_path, "net-1.0.0", executable=frozenset({"b/run.py"}))

    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
        assert [(member.name, member.isdir(), member.mode) for member in members] == [
            ("net-1.0.0", True, 0o755),
            ("net-1.0.0/b", True, 0o755),
            (f"net-1.0.0/b/{long}", True, 0o755),
            ("net-1.0.0/a.txt", False, 0o644),
            (f"net-1.0.0/b/{long}/c", False, 0o644),
            ("net-1.0.0/b/run.py", False, 0o755),
        ]
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            if member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                assert stream.read().decode() == member.name.removeprefix("net-1.0.0/")


def test_unpacked_by_tar_the_script_runs_and_nothing_is_missing(pi_bundle: Path, tmp_path: Path) -> None:
    package = pack(with_manifest(pi_bundle), tmp_path / "registry")[1].package
    (path,) = package.files
    assert path == "files/tiny/1.0.0/tiny-1.0.0-raspberry-pi.tar.gz"
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["tar", "xzf", str(tmp_path / "registry" / path)], cwd=home, check=True, timeout=60)
    assert [entry.name for entry in home.iterdir()] == ["tiny-1.0.0-raspberry-pi"]

    ran = subprocess.run(
        ["tiny-1.0.0-raspberry-pi/run.py", "--runs", "1"],
        cwd=home, capture_output=True, text=True, check=False, timeout=120,
        env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin"},
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "2 golden pictures give their golden tensors"
    assert check_manifest(home / "tiny-1.0.0-raspberry-pi"), "running it must not change it"

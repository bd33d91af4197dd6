"""A bundle → a tarball: the whole folder, for whoever wants files and no package manager.

Deterministic down to the last byte: sorted, no times, no owners, and stored rather than compressed, because what deflate
writes depends on the library and its version. `.tar.gz` all the same: gzip's checksum finds a damaged download.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

from exporter.system.files import sorted_files

_BLOCK_BYTES = 0xFFFF
_GZIP_HEAD = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"  # deflate, no name, no time, no system


def tarball_of(folder: Path, root: str, *, executable: frozenset[str] = frozenset()) -> bytes:
    """Return a `.tar.gz` of the files below `folder`, which unpacks to the one folder `root`.

    Those in `executable` (paths relative to `folder`) get mode 755, the others 644. Equal files give equal bytes.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        paths = sorted_files(folder)
        parents = {parent for path in paths for parent in path.relative_to(folder).parents}
        for parent in sorted(parents):
            archive.addfile(_member(_inside(root, parent), tarfile.DIRTYPE, 0o755))
        for path in paths:
            name = path.relative_to(folder)
            member = _member(
                _inside(root, name), tarfile.REGTYPE, 0o755 if name.as_posix() in executable else 0o644
            )
            content = path.read_bytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip_stored(buffer.getvalue())


def gzip_stored(content: bytes) -> bytes:
    """Return `content` as one gzip member of stored blocks (RFC 1952, RFC 1951): no compressor has a say in it."""
    blocks = [content[start : start + _BLOCK_BYTES] for start in range(0, len(content), _BLOCK_BYTES)] or [
        b""
    ]
    parts = [_GZIP_HEAD]
    for number, block in enumerate(blocks, start=1):
        parts += [struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF))
    return b"".join(parts)


def _inside(root: str, path: Path) -> str:
    return root if path == Path() else f"{root}/{path.as_posix()}"


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, 0
    return member

"""The Java that an Android package carries, moved into a package of the artifact's own, so that no two models clash.

The classes were compiled once (`scripts/compile_android_classes.py`) in the package `edge_template`. In a class file every
name of a class is a string in its constant pool, and nothing counts bytes of it, so that moving a class is rewriting
strings. Specification: The Java Virtual Machine Specification, Java SE 8 Edition, 4.4.
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

from exporter.errors import InternalError
from targets.documents import TEMPLATES

SOURCES = TEMPLATES / "android" / "java"
ARCHIVE = TEMPLATES / "android" / "classes.zip"
TEMPLATE_PACKAGE = "edge_template"

ALWAYS = ("Contract", "Label", "ModelInfo", "Postprocessing", "Preprocessing", "Tensors")
FOR_TESTS = ("GoldenVectors", "Mistake", "Picture")

_MAGIC = 0xCAFEBABE
_UTF8 = 1
# Bytes that follow the tag of every other kind of constant.
_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}
_TWO_PLACES = (5, 6)


def compiled(names: tuple[str, ...], package: str) -> dict[str, bytes]:
    """Return the class files of `names`, and of what is nested in them, moved into `package`, by path in a jar."""
    files = {}
    with zipfile.ZipFile(ARCHIVE) as archive:
        for entry in archive.namelist():
            name = Path(entry).stem
            if name.split("$")[0] in names:
                files[f"{_path(package)}/{name}.class"] = relocated(archive.read(entry), package)
    missing = set(names) - {Path(path).stem for path in files}
    if missing:
        raise InternalError(f"{ARCHIVE} lacks {', '.join(sorted(missing))}", fix="report this as a bug")
    return files


def sources(names: tuple[str, ...], package: str) -> dict[str, bytes]:
    """Return the Java sources of the same classes, by path in a jar of sources."""
    return {
        f"{_path(package)}/{name}.java": _moved_source(
            (SOURCES / f"{name}.java").read_text(encoding="utf-8"), package
        ).encode()
        for name in names
    }


def relocated(content: bytes, package: str) -> bytes:
    """Return the class file `content` with everything of `edge_template` in `package`.

    Class names, descriptors, signatures and absolute resource paths are moved; nothing else changes. Raises `ValueError`
    if `content` is no class file.
    """
    old, new = f"{TEMPLATE_PACKAGE}/".encode(), f"{_path(package)}/".encode()
    try:
        magic, _, count = struct.unpack_from(">IIH", content)
        if magic != _MAGIC:
            raise ValueError("not a class file")
        parts, at, number = [content[:10]], 10, 1
        while number < count:
            tag = content[at]
            if tag == _UTF8:
                size = 3 + struct.unpack_from(">H", content, at + 1)[0]
                text = content[at + 3 : at + size].replace(old, new)
                parts.append(struct.pack(">BH", _UTF8, len(text)) + text)
            else:
                size = 1 + _SIZES[tag]
                parts.append(content[at : at + size])
            at, number = at + size, number + (2 if tag in _TWO_PLACES else 1)
        if at > len(content):
            raise ValueError("not a class file")
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError("not a class file") from error
    return b"".join((*parts, content[at:]))


def _path(package: str) -> str:
    return package.replace(".", "/")


def _moved_source(text: str, package: str) -> str:
    moved = re.sub(rf"^package {TEMPLATE_PACKAGE};", f"package {package};", text, count=1)
    return moved.replace(f"/{TEMPLATE_PACKAGE}/", f"/{_path(package)}/")

"""Deterministic zips: sorted names, 1980-01-01, fixed modes, stored without compression.

Stored, because what deflate writes depends on the library and its version, and quantised weights hardly compress.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

_EARLIEST = (1980, 1, 1, 0, 0, 0)
_REGULAR, _EXECUTABLE = 0o100644, 0o100755


def zip_of(files: Mapping[str, bytes], *, executable: frozenset[str] = frozenset()) -> bytes:
    """Return a zip of `files`, contents by path; those in `executable` get mode 755, the others 644.

    Equal files give equal bytes on every machine. Paths are sorted, relative and without `..`; `ValueError` otherwise.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            if not name or name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{name!r} is no path inside a zip")
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.create_system = 3  # Unix, whoever writes it
            entry.external_attr = (_EXECUTABLE if name in executable else _REGULAR) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()

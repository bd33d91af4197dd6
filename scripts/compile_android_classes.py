"""Compile the Java that Android packages carry: targets/templates/android/java/ → classes.zip beside it.

    python scripts/compile_android_classes.py [FILE]

Whoever packs a model needs no JDK, because the classes lie in the repository; whoever changes a source runs this, with the
major version of javac that wrote the archive last (`JAVAC_MAJOR`), so that equal sources stay equal bytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from targets.android.java_classes import ARCHIVE, SOURCES
from targets.packaging.zips import zip_of

JAVAC_MAJOR = 17
# What the sources call of onnxruntime and LiteRT, with the descriptors of the real ones.
INTERFACES = Path(__file__).parents[1] / "tests" / "targets" / "jvm"
_LIBRARIES = ("ai", "org", "standin")


def main(destination: Path) -> None:
    major = javac_major()
    if major != JAVAC_MAJOR:
        sys.exit(
            f"javac is version {major}, the archive was written by {JAVAC_MAJOR}: install that, or change both here"
        )
    with tempfile.TemporaryDirectory() as scratch:
        libraries = [str(path) for name in _LIBRARIES for path in sorted((INTERFACES / name).rglob("*.java"))]
        _javac("-d", scratch, *libraries)
        destination.write_bytes(compiled(Path(scratch)))
    print(f"{destination}: {destination.stat().st_size} bytes")


def javac_major() -> int | None:
    """Return the major version of the javac that is installed, or `None`."""
    try:
        result = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"javac (\d+)", result.stdout + result.stderr)
    return int(found[1]) if found else None


def compiled(interfaces: Path) -> bytes:
    """Return the archive of all classes, compiled now for Java 8, which every Android build takes.

    `interfaces` is a folder with the classes of `INTERFACES`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        classes = Path(scratch)
        sources = [str(path) for path in sorted(SOURCES.glob("*.java"))]
        _javac(
            "-Xlint:all", "-Werror", "-g:source,lines", "-cp", str(interfaces), "-d", str(classes), *sources
        )
        return zip_of(
            {path.relative_to(classes).as_posix(): path.read_bytes() for path in classes.rglob("*.class")}
        )


def _javac(*arguments: str) -> None:
    subprocess.run(["javac", "--release", "8", "-Xlint:-options", *arguments], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ARCHIVE)

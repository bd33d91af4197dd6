"""What tests of the Swift side stand on: a parser, and the real compiler where there is one."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_swift

ROOT = Path(__file__).parents[2]
DOUBLES = Path(__file__).parent / "swift_doubles"
NO_SWIFT = "no Swift compiler; fix: scripts/swift_toolchain --install (2.5 GB into the cache), or Swift from swift.org"


@functools.cache
def swift() -> Path | None:
    """Return the `swift` that `scripts/swift_toolchain` finds, or `None`."""
    found = subprocess.run(
        [ROOT / "scripts" / "swift_toolchain"], capture_output=True, text=True, check=False
    )
    return Path(found.stdout.strip()) if found.returncode == 0 else None


needs_swift = pytest.mark.skipif(swift() is None, reason=NO_SWIFT)


def run_swift(*arguments: object, folder: Path, tool: str = "swift", **variables: str) -> str:
    """Run the toolchain's `tool` in `folder` with a home of its own; return what it says, and fail with it.

    The tool `env` runs a program that the compiler made; a toolchain on the host's own libraries needs none for that.
    """
    found = swift()
    assert found is not None
    program = found.with_name(tool)
    home = folder.parent / "swift-home"
    home.mkdir(exist_ok=True)
    ran = subprocess.run(
        [str(program)] * program.exists() + [*map(str, arguments)],
        cwd=folder,
        env=os.environ | {"HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said[-6000:]
    return said


def build_double(name: str, folder: Path) -> None:
    """Compile one of the doubles of Apple's frameworks into `folder`, as a module and a library."""
    links = ["-lOnnxRuntimeBindings"] if name == "CoreML" else []
    module = ["-emit-library", "-emit-module", "-module-name", name, "-I.", "-L."]
    run_swift(*module, *links, DOUBLES / f"{name}.swift", "-o", f"lib{name}.so", folder=folder, tool="swiftc")


def syntax_errors(source: str) -> list[str]:
    """Return every line where tree-sitter's grammar of Swift finds an error."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    found, lines = [], source.splitlines()
    left = [parser.parse(source.encode()).root_node]
    while left:
        node = left.pop()
        if node.is_error or node.is_missing:
            row = node.start_point[0]
            found.append(f"{row + 1}: {lines[row] if row < len(lines) else ''}")
        left += node.children
    return sorted(found)

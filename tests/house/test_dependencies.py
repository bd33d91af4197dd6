"""What the code imports is what pyproject.toml declares, and what is optional is imported only where it is used."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = {"exporter", "targets", "calibration"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Brought by a declared dependency for the part of it that is used; and `google` belongs to many.
BROUGHT = {"aiohttp": "fsspec", "sqlalchemy": "optuna", "sigstore": "model-signing", "google": "protobuf"}
# Optuna's storages on a server: who names such a URL in a recipe brings its client.
THE_USERS_OWN = {"grpc", "redis"}
OWNERS = importlib.metadata.packages_distributions()


def normal(name: str) -> str:
    """Return the normal form of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Return the distributions that the core and `extras` declare, those of extras that they name among them."""
    lines = [*PROJECT["dependencies"]]
    waiting = [*extras]
    while waiting:
        for line in PROJECT["optional-dependencies"][waiting.pop()]:
            lines.append(line)
            if line.startswith("edge-exporter["):
                waiting += line.partition("[")[2].rstrip("]").split(",")
    return {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in lines}  # type: ignore[index]


def imported(path: Path) -> Iterator[str]:
    """Yield the distributions that `path` imports, inside functions too, by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in (
            {name.partition(".")[0] for name in names}
            - OURS
            - sys.stdlib_module_names
            - THE_USERS_OWN
            - {"_typeshed"}
        ):
            yield normal(BROUGHT.get(name) or OWNERS.get(name, [name])[0])


IMPORTED = {
    name
    for package in sorted(OURS)
    for path in sorted((ROOT / package).rglob("*.py"))
    if "templates" not in path.parts
    for name in imported(path)
}


def test_every_import_is_declared() -> None:
    assert IMPORTED - declared("all", "litert", "s3", "gcs") == set()


def test_every_core_dependency_is_imported() -> None:
    assert declared() - IMPORTED == set()

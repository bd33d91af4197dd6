"""Make a converter's own environment, whole or not at all, and take it away."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import exporter
from exporter.errors import ResourceError, UnsupportedError, UsageError
from exporter.system.converters.catalogue import Converter
from exporter.system.converters.environment import (
    CONTENTS,
    SHARED,
    ConverterEnvironment,
    conditions_of,
    home_of,
    pins_of,
)
from exporter.system.files import hold_lock, write_json

_OURS = ("calibration", "exporter", "targets")
_DESCRIBE = (
    "import json, sys, sysconfig; print(json.dumps([sys.implementation.cache_tag, sysconfig.get_platform()]))"
)
_FIND = "import json, sys, importlib.util as u; print(json.dumps([u.find_spec(n) is not None for n in sys.argv[1:]]))"
_LIST = """
import importlib.metadata, json, re
found = importlib.metadata.distributions()
print(json.dumps({re.sub("[-_.]+", "-", item.metadata["Name"]).lower(): item.version for item in found}))
"""


def set_up(
    converter: Converter, say: Callable[[str], None], *, python: Path | None = None, again: bool = False
) -> ConverterEnvironment:
    """Return `converter`'s own environment, made first if there is none that fits this one, or if it is to be made `again`.

    `python` makes it; by default the one that runs this. Under another Python version torch cannot be shared, and is
    installed there too. What needs the network is pip's. Raises `UsageError` (2) for a `python` that is none or too old,
    `UnsupportedError` (12) where this environment lacks what it must have itself or pip finds no fitting versions, and
    `ResourceError` (15) for a folder that cannot be written.
    """
    _require_here(converter)
    home = home_of(converter)
    chosen = str(python or sys.executable)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(home.parent / f".{home.name}.lock", what=str(home)):
            made = None if again or python is not None else _made_before(home, converter)
            return made or _make_whole(home, converter, chosen, say)
    except OSError as error:
        raise ResourceError(
            f"the {converter.extra} converter's environment cannot be made in {home.parent}: {error.strerror or error}",
            fix="free 2 GB there, or install the tool into a virtual environment of your own",
        ) from error


def remove(converter: Converter) -> bool:
    """Remove `converter`'s own environment; return whether there was one."""
    home = home_of(converter)
    if not home.exists():
        return False
    with hold_lock(home.parent / f".{home.name}.lock", what=str(home)):
        (home / CONTENTS).unlink(missing_ok=True)  # from here on nobody takes it for whole
        shutil.rmtree(home)
    return True


def _require_here(converter: Converter) -> None:
    missing = [module for module in converter.modules_here if importlib.util.find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f"files of the {converter.extra} converter are read and run with {', '.join(missing)}, which is not installed",
            fix=f"run: pip install 'edge-exporter[{converter.extra_here}]', then this command again",
        )


def _made_before(home: Path, converter: Converter) -> ConverterEnvironment | None:
    try:
        contents = json.loads((home / CONTENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if contents["made_for"] != conditions_of(converter):
        return None
    found = ConverterEnvironment(home, contents["versions"])
    return found if _runs(found, converter) else None


def _make_whole(
    home: Path, converter: Converter, python: str, say: Callable[[str], None]
) -> ConverterEnvironment:
    """Make `home` beside its place and move it there; one that was there is kept until then."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".making-") as scratch:
        made = Path(scratch) / home.name
        _make(made, converter, python, say)
        if home.exists():
            home.rename(Path(scratch) / "before")
        made.rename(home)
    return ConverterEnvironment(home, json.loads((home / CONTENTS).read_text(encoding="utf-8"))["versions"])


def _make(home: Path, converter: Converter, python: str, say: Callable[[str], None]) -> None:
    shares_torch = _ask([python, "-c", _DESCRIBE]) == _ask([sys.executable, "-c", _DESCRIBE])
    say(f"making an environment with {python}")
    _run([python, "-m", "venv", str(home)], f"{python} cannot make a virtual environment")
    own = ConverterEnvironment(home, {})
    (home / SHARED).mkdir()
    _link(home / SHARED, (Path(exporter.__file__).resolve().parents[1] / name for name in _OURS))
    if shares_torch:
        _link(home / SHARED, _files_of_torch(_pinned(converter)))
    packages = Path(
        _ask([str(own.python), "-c", "import json, site; print(json.dumps(site.getsitepackages()))"])[0]
    )
    # Relative, because the environment is moved to its place when it is whole.
    link = os.path.relpath(home / SHARED, packages)
    (packages / "edge_exporter_shared.pth").write_text(f"{link}\n", encoding="utf-8")
    conditions = conditions_of(converter)
    torch = conditions["torch"] if shares_torch else conditions["torch"].partition("+")[0]
    beside = "with the torch that is here" if shares_torch else f"and torch {torch}"
    say(f"installing the {converter.extra} converter {beside}; minutes where nothing is cached")
    pip = [str(own.python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install"]
    _run(
        [*pip, "--requirement", str(pins_of(converter)), f"torch=={torch}"],
        f"pip cannot install {converter.extra}",
    )
    versions = _ask([str(own.python), "-c", _LIST])
    write_json(home / CONTENTS, {"made_for": conditions, "versions": dict(sorted(versions.items()))})


def _pinned(converter: Converter) -> set[str]:
    lines = pins_of(converter).read_text(encoding="utf-8").splitlines()
    return {_normal(line.partition("==")[0]) for line in lines if "==" in line}


def _files_of_torch(pinned: Collection[str]) -> Iterator[Path]:
    """Yield what lies in the folder of packages for torch, and for what it needs that `pinned` does not name."""
    waiting, seen = ["torch"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name in pinned:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        tops = {path.parts[0] for path in found.files or () if path.parts[0] not in {"..", "__pycache__"}}
        yield from (Path(str(found.locate_file(top))) for top in sorted(tops))
        requirements = map(Requirement, found.requires or ())
        waiting += [
            _normal(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})
        ]


def _link(folder: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        link = folder / path.name
        if path.exists() and not link.is_symlink():
            link.symlink_to(path)


def _runs(environment: ConverterEnvironment, converter: Converter) -> bool:
    """Whether the interpreter is still there and finds what converts."""
    names = [*converter.modules, "torch", "exporter"]
    with contextlib.suppress(UsageError, UnsupportedError):
        return all(_ask([str(environment.python), "-c", _FIND, *names]))
    return False


def _ask(command: Sequence[str]) -> Any:
    """Return the JSON that `command` prints."""
    return json.loads(_run(command, f"{command[0]} cannot be used"))


def _run(command: Sequence[str], what: str) -> str:
    """Return what `command` prints; its last words in an error otherwise."""
    outside = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    try:
        ran = subprocess.run(
            command, env=outside, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no {command[0]}", fix="give --python the path of a Python ≥ 3.11"
        ) from error
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise UnsupportedError(
            f"{what}: {said[-1].strip()}", fix="check the network, and --python: not every Python has wheels"
        )
    return ran.stdout


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

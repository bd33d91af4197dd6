"""The user's own functions: found by "file.py:name" or "module:name", kept from colliding with ours.

Running them is what the recipe asks for; whatever they raise becomes one line that names them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from calibration.dataset import Dataset, StreamDataset
from exporter.arrays import Array, Sample
from exporter.errors import CalibrationError, RecipeError


def load_callable(reference: str, root: Path) -> Callable[..., Any]:
    """Return the function that `reference` names: "file.py:name" under `root`, or "package.module:name".

    A file is imported under a private name made of its path, so that a user's `targets/` or `exporter/`
    cannot stand for ours. Raises RecipeError when there is no such thing, CalibrationError when importing
    it fails.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise RecipeError(
            f"{reference!r} names no function", fix='write "file.py:function" or "module:function"'
        )
    module = _load_file(root / place, reference) if place.endswith(".py") else _load_module(place, reference)
    function = getattr(module, name, None)
    if not callable(function):
        found = ", ".join(
            sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        )
        raise RecipeError(f"{place} has no function {name!r}", fix=f"it defines {found or 'none'}")
    found_function: Callable[..., Any] = function
    return found_function


def open_python(reference: str, root: Path, label: str | None) -> Dataset:
    """Return the samples of the iterable that the named function returns, a dict of arrays each.

    The function is called once a pass, so it may be a generator and need not hold its samples in memory; it
    must give the same ones each time. `label` names the key that holds a sample's label. Raises
    CalibrationError for whatever goes wrong in it.
    """
    function = load_callable(reference, root)

    def start() -> Iterator[Sample]:
        for index, item in enumerate(_guarded(reference, function)):
            if not isinstance(item, Mapping):
                raise CalibrationError(
                    f"{reference} gave {type(item).__name__} for sample {index}",
                    fix="give dicts of input name to array",
                )
            yield item

    def split(item: Sample) -> tuple[dict[str, Array], Any | None]:
        sample = {str(name): np.asarray(value) for name, value in item.items() if name != label}
        for name, array in sample.items():
            if array.dtype.hasobject:
                raise CalibrationError(
                    f"{reference} gave {name!r} as Python objects", fix="give numeric arrays"
                )
        if label is not None and label not in item:
            raise CalibrationError(
                f"{reference} gave a sample without {label!r}", fix=f"add {label!r} to each dict"
            )
        return sample, None if label is None else item[label]

    return StreamDataset(start, f"{reference} (python)", split=split)


def call_guarded(reference: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the user's `function` returns; CalibrationError, naming its line, for what it raises."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _failed(reference, error) from error


def _guarded(reference: str, function: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    items = call_guarded(reference, function)
    if not isinstance(items, Iterable):
        raise CalibrationError(
            f"{reference} returned {type(items).__name__}", fix="return an iterable of dicts"
        )
    iterator = iter(items)
    nothing = object()
    while (item := call_guarded(reference, next, iterator, nothing)) is not nothing:
        yield item


def _load_file(path: Path, reference: str) -> ModuleType:
    if not path.is_file():
        raise RecipeError(
            f"{reference}: {path} does not exist", fix="give the file's path, relative to the recipe"
        )
    name = f"_edge_exporter_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{reference}: {path} is not a Python file", fix="give a .py file")
    module = importlib.util.module_from_spec(spec)
    # Registered while it loads: dataclasses and pickle look their module up by name.
    sys.modules[name] = module
    try:
        call_guarded(reference, spec.loader.exec_module, module)
    except CalibrationError:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str, reference: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise RecipeError(
            f"{reference}: there is no module {name!r}", fix='install it, or write "file.py:function"'
        )
    module: ModuleType = call_guarded(reference, importlib.import_module, name)
    return module


def _failed(reference: str, error: BaseException) -> CalibrationError:
    frames = traceback.extract_tb(error.__traceback__)
    theirs = next((frame for frame in reversed(frames) if frame.filename != __file__), None)
    place = f" at {Path(theirs.filename).name}:{theirs.lineno}" if theirs else ""
    reason = str(error).splitlines()[0] if str(error) else ""
    return CalibrationError(
        f"{reference} raised {type(error).__name__}{place}{': ' + reason if reason else ''}",
        fix="correct the function",
    )

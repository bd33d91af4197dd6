"""Code that the user named in a recipe: one way to bring it in, one way to call it, and one set of errors.

A reference is `file.py:name` or `package.module:name`, where the name may be dotted (`Zoo.build`). Where its modules live
and how they find their neighbours is said in `user_modules`. Framework-free.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from exporter.errors import EdgeError, InputError, RecipeError, said
from exporter.system.files import require_file
from exporter.system.user_modules import (
    Home,
    drop_links,
    forget_edited,
    home_of,
    importable,
    load_file,
    shadowed_neighbour,
    sources_of,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UserCallable:
    """A callable of the user's. It is called like any; what it raises is a `failure` that says whose fault it is.

    `name` is the recipe's key and reference; `module` is where the reference leads.
    """

    name: str
    module: str
    function: Callable[..., Any]
    fix: str
    failure: type[EdgeError]

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        return self.guard(self.function, *arguments)

    def guard(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return `function(*arguments)`, which runs the user's code in some other way than by calling it."""
        return call_guarded(
            self.name, function, *arguments, fix=self.fix, failure=self.failure, module=self.module
        )


def load_callable(
    reference: str, folder: Path, *, key: str, fix: str, failure: type[EdgeError] = InputError
) -> UserCallable:
    """Return what `reference` names: `file.py:name`, relative to the recipe's `folder`, or `package.module:name`.

    A module is looked for among what is installed, then in `folder`. A file is loaded once in this process, and anew
    when it, or another of the user's files that are loaded, was edited. `key` is what the recipe calls it, and `fix`
    what is said of a call that fails.

    Raises `RecipeError` (2) for what is no reference, `InputError` (10) for code that is not there, fails while it is
    imported, or defines no such callable. A call raises `failure`: `InputError` (10), but `CalibrationError` (13) for
    data that the user's code makes, which is then unusable like any other data.
    """
    where, _, attribute = reference.rpartition(":")
    if not where or not all(part.isidentifier() for part in attribute.split(".")):
        raise RecipeError(
            f"{key} is {reference!r}, which names no callable",
            fix='write "file.py:callable" or "package.module:callable"',
        )
    name = f"{key} {reference}"
    forget_edited()
    module = _load(where, folder, name)
    found = call_guarded(name, _attribute_of, module, attribute, fix=f"make {attribute} something to call")
    if not callable(found):
        names = sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise InputError(f"{name}: no callable {attribute}", fix=f"it has {', '.join(names) or 'none'}")
    return UserCallable(name, module.__name__, found, fix, failure)


def call_guarded(
    name: str,
    function: Callable[..., _T],
    *arguments: Any,
    fix: str,
    failure: type[EdgeError] = InputError,
    module: str = "",
) -> _T:
    """Return `function(*arguments)`; what the user's code in it raises is a `failure` of `name` that tells its line.

    An `EdgeError` passes as it is, as does the end of memory. `module` is the user's although it is installed.
    """
    try:
        return function(*arguments)
    except (EdgeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise failure(
            f"{name} failed: {said(error)}{user_line(error, module)}", fix=_renaming(error) or fix
        ) from error
    finally:
        drop_links()


def user_line(error: BaseException, module: str = "") -> str:
    """Return the deepest line of the user's own code in the traceback, as ` (file.py line 12)`.

    `module` is his too, although it is installed.
    """
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if home_of(frame.f_globals) is not None or (module and frame.f_globals.get("__name__") == module):
            place = f" ({Path(frame.f_code.co_filename).name} line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


def source_digest(reference: str, folder: Path) -> str:
    """Return what changes when the user edits the file of `reference`, or one beside it that its imports lead to.

    Of an installed module it is the name: versions of libraries are the environment's. Imports are read from the text
    (`user_modules.sources_of` says what that misses), so that it is known before anything runs.
    """
    where = reference.rpartition(":")[0]
    files = () if _is_installed(where) else sources_of(where, folder)
    digests = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if len(digests) < 2:
        return next(iter(digests.values()), where)
    lines = (f"{os.path.relpath(file, folder)}\0{digest}\n" for file, digest in digests.items())
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _load(where: str, folder: Path, name: str) -> ModuleType:
    if where.endswith(".py"):
        require_file(folder / where, what=f"{name}: the file")
    try:
        if where.endswith(".py"):
            return load_file(folder / where, folder)
        with importable(folder):
            return importlib.import_module(where)
    except (EdgeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise InputError(
                f"{name}: there is no module {error.name}",
                fix=f'install it, put it into {folder}, or write "file.py:callable"',
            ) from error
        raise InputError(
            f"{name}: {where} fails while it is imported: {said(error)}{user_line(error, where)}",
            fix=_renaming(error) or f"make python -c 'import …' of {where} work first",
        ) from error
    finally:
        drop_links()


def _attribute_of(module: ModuleType, dotted: str) -> object:
    try:
        return operator.attrgetter(dotted)(module)
    except AttributeError:
        return None


def _is_installed(where: str) -> bool:
    if where.endswith(".py"):
        return False
    try:
        found = importlib.util.find_spec(where.partition(".")[0])
    except ValueError:  # how Python says that it is loaded and nobody knows from where
        return True
    return found is not None and found.origin is not None  # without an origin it is a mere folder


def _renaming(error: BaseException) -> str | None:
    """Return the advice to rename a file whose name something installed has too, if that is what `error` is about."""
    if isinstance(error, ImportError):
        name = error.name
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    else:
        return None
    home = _home_in(error)
    hidden = shadowed_neighbour(name, home) if name and home is not None else None
    if hidden is None:
        return None
    return f"rename {hidden}: {hidden.stem} is the name of something installed, which comes first"


def _home_in(error: BaseException) -> Home | None:
    """Return the home of the user's code that is deepest in the traceback."""
    found = None
    traceback = error.__traceback__
    while traceback is not None:
        found = home_of(traceback.tb_frame.f_globals) or found
        traceback = traceback.tb_next
    return found

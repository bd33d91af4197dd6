"""Code that the user named in a recipe: brought in under a private name, its failures told by line.

Framework-free.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from exporter.errors import EdgeError, InputError, said
from exporter.system.files import require_file

_USER_MODULE = "_edge_user_"


def import_user_code(reference: str, folder: Path) -> tuple[ModuleType, str]:
    """Return the module and attribute that `file.py:name` or `package.module:name` refers to.

    A file is imported under a private name, so that a user's `targets.py` never meets ours.
    Raises `InputError` (10) for code that is not there or fails while it is imported, naming its line.
    """
    where, _, attribute = reference.partition(":")
    try:
        module = _import_file(folder / where) if where.endswith(".py") else importlib.import_module(where)
    except (EdgeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"{where} fails while it is imported: {said(error)}{user_line(error)}",
            fix=f"make python -c 'import …' of {where} work first",
        ) from error
    return module, attribute


def _import_file(path: Path) -> ModuleType:
    require_file(path, what="the Python file")
    name = f"{_USER_MODULE}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path} is not a Python file", fix="name a .py file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def user_line(error: BaseException) -> str:
    """Return the deepest line of the user's own file in the traceback, as ` (file.py line 12)`."""
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith(_USER_MODULE):
            place = f" ({Path(frame.f_code.co_filename).name} line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place

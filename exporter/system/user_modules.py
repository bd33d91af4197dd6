"""The user's own modules in this interpreter: one module for each file, whoever asks for it, and nobody else's way crossed.

A file of the user's lives in `sys.modules` under a private name that is made of its path, so that his `targets.py` never
stands for ours. What his code imports is looked for, after everything that is installed, beside the file that imports and
in the recipe's folder: at import time, and later inside a function, a generator or a `forward`. The name that was
imported is only a *link* to the private module and goes again with `drop_links`, so that two folders may each have a
`helpers.py`, and our own `import tokenizers` never meets the user's.

Knows Python's import system. Must not know recipes (`user_code` does) nor how failures are told.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_PREFIX = "_edge_user_"
_LINKS: set[str] = set()
_GRANTED: ContextVar[Home | None] = ContextVar("granted", default=None)
_OURS = frozenset({"exporter", "calibration", "targets"})


@dataclass(frozen=True, slots=True)
class Home:
    """Where a module of the user's looks for its neighbours: its own folder, then the recipe's."""

    own: Path
    recipe: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The two, or the one that they are."""
        return (self.own,) if self.own == self.recipe else (self.own, self.recipe)


def home_of(owner: object) -> Home | None:
    """Return the home of a user's module, or of a namespace of globals that is one's; `None` for anybody else's."""
    found = owner.get("__spec__") if isinstance(owner, dict) else getattr(owner, "__spec__", None)
    # The one place in a module where importlib leaves room for what a finder wants to remember.
    state = getattr(found, "loader_state", None)
    return state if isinstance(state, Home) else None


def load_file(path: Path, recipe: Path) -> ModuleType:
    """Return the module of a Python file, executed unless it was; whatever it raises while it runs is raised."""
    _take_a_seat()
    path = path.absolute()
    is_package = path.name == "__init__.py"
    folder = path.parent
    place = _Place(path, (folder,) if is_package else ())
    home = Home(folder.parent if is_package else folder, recipe.absolute())
    return _module_of(_private_name(folder.name if is_package else path.stem, place), place, home)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the block import what lies in `folder`, after everything that is installed, whoever it is that asks.

    For what is imported on the user's behalf: the module that a recipe names, the classes in a pickle.
    """
    _take_a_seat()
    before = _GRANTED.set(Home(folder.absolute(), folder.absolute()))
    try:
        yield
    finally:
        _GRANTED.reset(before)
        drop_links()


def drop_links() -> None:
    """Take the names under which the user's modules were imported out of `sys.modules` again."""
    while _LINKS:
        name = _LINKS.pop()
        if home_of(sys.modules.get(name)) is not None:
            del sys.modules[name]


def forget_edited() -> None:
    """If the file of any of the user's modules has changed, forget them all, so that they are loaded anew.

    All, because a module that stayed would go on with classes and functions of the one that changed.
    """
    private = [name for name in tuple(sys.modules) if name.startswith(_PREFIX)]
    loaders = (getattr(sys.modules[name].__spec__, "loader", None) for name in private)
    if any(isinstance(loader, _UserLoader) and loader.is_stale() for loader in loaders):
        for name in private:
            del sys.modules[name]


def shadowed_neighbour(name: str, home: Home) -> Path | None:
    """Return the file or folder of the user's that `import name` would mean if nothing installed were called so.

    `None` if there is none, if that is what it means, or if it is a folder that holds no code.
    """
    top = name.partition(".")[0]
    place = _place_of(top, home.folders)
    if place is None or top not in sys.modules or home_of(sys.modules[top]) is not None:
        return None
    holds_code = place.file is not None or any(next(folder.glob("*.py"), None) for folder in place.folders)
    return place.path if holds_code else None


def sources_of(reference: str, recipe: Path) -> tuple[Path, ...]:
    """Return the file of `file.py` or `package.module` and those of the user's that its imports lead to, sorted.

    Told from the text, so imports inside functions count and nothing is executed. Not seen are modules with computed
    names and files that are read as data. Empty for an installed module, and for a file that is not there.
    """
    recipe = recipe.absolute()
    if reference.endswith(".py"):
        path = recipe / reference
        waiting = [(path, Home(path.parent, recipe))] if path.is_file() else []
    else:
        waiting = list(_named(reference.split("."), Home(recipe, recipe)))
    found: dict[Path, None] = {}
    while waiting:
        path, home = waiting.pop()
        if path not in found:
            found[path] = None
            waiting += _imported_by(path, home)
    return tuple(sorted(found))


# --- where a module lies ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """The file of a module, `None` for a folder without `__init__.py`; and of a package, the folders of its insides."""

    file: Path | None
    folders: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The module's file; a package's folder."""
        return self.folders[0] if self.folders or self.file is None else self.file


def _place_of(name: str, folders: Iterable[Path]) -> _Place | None:
    """Return where `name` lies in the first of `folders` that has it, in Python's own order; `None` if none has."""
    portions = []
    for folder in folders:
        inside = folder / name
        if (inside / "__init__.py").is_file():
            return _Place(inside / "__init__.py", (inside,))
        if (folder / f"{name}.py").is_file():
            return _Place(folder / f"{name}.py", ())
        if inside.is_dir():
            portions.append(inside)
    return _Place(None, tuple(portions)) if portions else None


def _named(parts: Sequence[str], home: Home, folders: Sequence[Path] = ()) -> Iterator[tuple[Path, Home]]:
    """Yield the files that importing the dotted `parts` executes, looked for in `folders` (default: the home's)."""
    for number, part in enumerate(parts):
        place = _place_of(part, folders or home.folders)
        if place is None:
            return
        if number == 0 and not folders:
            home = Home(place.path.parent, home.recipe)
        if place.file is not None:
            yield place.file, home
        folders = place.folders
        if not folders:
            return


def _imported_by(path: Path, home: Home) -> Iterator[tuple[Path, Home]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _named(alias.name.split("."), home)
        elif isinstance(node, ast.ImportFrom):
            start = node.module.split(".") if node.module else []
            folders = [path.parents[node.level - 1]] if 0 < node.level <= len(path.parents) else []
            for alias in node.names:
                yield from _named([*start, alias.name], home, folders)


# --- modules under private names -------------------------------------------------------------------------


class _UserLoader(SourceFileLoader):
    """Executes a user's file as it is now (bytecode files go by the second), and remembers what it was."""

    _digest = ""

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002
        """Return the code of the file."""
        source = self.get_data(str(self.path))
        self._digest = hashlib.sha256(source).hexdigest()
        return self.source_to_code(source, str(self.path))

    def is_stale(self) -> bool:
        """Whether the file is gone or holds other bytes than were executed."""
        try:
            return hashlib.sha256(self.get_data(str(self.path))).hexdigest() != self._digest
        except OSError:
            return True


def _private_name(label: str, place: _Place) -> str:
    readable = re.sub(r"[^A-Za-z0-9]", "_", label)
    return f"{_PREFIX}{readable}_{hashlib.sha256(os.path.realpath(place.path).encode()).hexdigest()[:16]}"


def _module_of(name: str, place: _Place, home: Home, *, link: str | None = None) -> ModuleType:
    """Return the module at `place`, executed under the private `name` unless it is there already.

    `link` is the name that it gets for a while, from before it is executed: a package imports its own parts by it.
    """
    known = sys.modules.get(name) or _at(place)
    spec = _spec(name, place, home)
    module = known or module_from_spec(spec)
    if link is not None:
        _link(link, module)
    if known is None:
        # Registered while it loads: dataclasses and pickle look their module up by name.
        sys.modules[name] = module
    if known is None and isinstance(spec.loader, _UserLoader):
        try:
            with _links_of_its_own(home):
                spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
    return module


def _link(name: str, module: ModuleType) -> None:
    sys.modules[name] = module
    _LINKS.add(name)


@contextlib.contextmanager
def _links_of_its_own(home: Home) -> Iterator[None]:
    """Let a module of `home` be executed without what the same names mean to those who import it, and they without its."""
    before = {name: sys.modules[name] for name in _LINKS if name in sys.modules}
    for name, module in before.items():
        if home_of(module) != home:
            del sys.modules[name]
    try:
        yield
    finally:
        drop_links()
        for name, module in before.items():
            _link(name, module)


def _at(place: _Place) -> ModuleType | None:
    """Return the module of the file, where it is known as a part of a package, or by another label."""
    if place.file is None:
        return None
    real = os.path.realpath(place.file)
    for name, module in tuple(sys.modules.items()):
        origin = module.__spec__.origin if name.startswith(_PREFIX) and module.__spec__ else None
        if origin is not None and os.path.realpath(origin) == real:
            return module
    return None


def _spec(name: str, place: _Place, home: Home) -> ModuleSpec:
    if place.file is None:
        found = ModuleSpec(name, None, is_package=True)
    else:
        loader = _UserLoader(name, str(place.file))
        made = spec_from_file_location(name, place.file, loader=loader)
        if made is None:
            raise ImportError(f"{place.file} cannot be loaded", name=name, path=str(place.file))
        found = made
    if place.folders:
        found.submodule_search_locations = [str(folder) for folder in place.folders]
    found.loader_state = home
    return found


# --- finding neighbours ----------------------------------------------------------------------------------


class _Link(Loader):
    """Answers an import with the user's module at a place, whose own name is another."""

    def __init__(self, name: str, place: _Place, home: Home) -> None:
        self._name, self._place, self._home = name, place, home

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        """Return `None`: Python's usual module, which nobody will see."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the user's module where importlib looks, when this is done, for what it hands out."""
        _module_of(self._name, self._place, self._home, link=module.__name__)


class _Neighbours(MetaPathFinder):
    """Finds what lies beside the user's files, for his code alone. It stands last, after all that is installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a link to the neighbour of whoever imports, or what Python makes of it if that is not source code."""
        home = _asking() or _GRANTED.get()
        if home is None or (path is not None and not _is_mere_folder(fullname)):
            return None
        top, *inside = fullname.split(".")
        folders = home.folders
        place = _place_of(top, folders)
        if not inside and (place is None or place.file is None):
            compiled = PathFinder.find_spec(fullname, [str(folder) for folder in folders], target)
            if compiled is not None and compiled.loader is not None:
                return compiled
        if place is None:
            return None
        own = Home(place.path.parent, home.recipe)
        name = _private_name(top, place)
        for part in inside:
            parent = _module_of(name, place, own)
            place = _place_of(part, place.folders)
            if place is None:
                return None
            name = f"{parent.__name__}.{part}"
        return ModuleSpec(fullname, _Link(name, place, own))


class _Insides(MetaPathFinder):
    """Finds what lies in the user's packages. It stands first, or Python would make second modules of their files."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return the part of a user's package: itself under its private name, a link to it under any other."""
        parent, _, child = fullname.rpartition(".")
        package = sys.modules.get(parent) if parent else None
        home = home_of(package)
        if package is None or home is None or path is None:
            return None
        place = _place_of(child, map(Path, path))
        if place is None:
            return None
        name = f"{package.__name__}.{child}"
        if name == fullname and _at(place) is None:
            return _spec(name, place, home)
        return ModuleSpec(fullname, _Link(name, place, home))


def _is_mere_folder(fullname: str) -> bool:
    """Whether the parent of `fullname` is a folder without code that lies on Python's path, as any folder may.

    A user's package of that name is meant then, though Python has found the folder first.
    """
    found = getattr(sys.modules.get(fullname.rpartition(".")[0]), "__spec__", None)
    return found is not None and found.origin is None and home_of(sys.modules.get(found.name)) is None


def _asking() -> Home | None:
    """Return the home of the user's code that imports now; `None` if it is ours, or a library that we called.

    A library that the user's code called (`pickle`, say) asks for him.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        home = home_of(frame.f_globals)
        if home is not None:
            return home
        if name != __name__ and name.partition(".")[0] in _OURS:
            return None
        frame = frame.f_back
    return None


def _take_a_seat() -> None:
    """Put the finders where they belong; again if something took them away or came after them."""
    if not any(isinstance(finder, _Insides) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Insides())
        sys.meta_path.append(_Neighbours())

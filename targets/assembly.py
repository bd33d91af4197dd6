"""A package of small modules → one Python file that runs alone: what travels to a device or lies in a bundle.

The package is written, imported, typed and tested as any other; the file is put together from its source text, so that
people who open it find the same names and comments. It begins with the package's docstring, imports everything once,
and holds each module under its name, after those that it imports from. What would mean something else in one file than
in many is refused: a package is assembled in every test run, so that its author hears of it and no user does.
"""

from __future__ import annotations

import ast
import builtins
import io
import symtable
import sys
import tokenize
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_ENTRY = "__main__"
_FUTURE = "__future__"


class AssemblyError(ValueError):
    """A package that cannot be one file: the module and the rule that it breaks."""


@dataclass(frozen=True, slots=True)
class _Import:
    """`import module as alias` if `name` is empty, else `from module import name as alias`."""

    module: str
    name: str
    alias: str

    @property
    def bound(self) -> tuple[str, str]:
        """The name that it binds, and what that stands for."""
        if self.name:
            return self.alias or self.name, f"{self.module}.{self.name}"
        root = self.module.partition(".")[0]
        return (self.alias, self.module) if self.alias else (root, root)


@dataclass(frozen=True, slots=True)
class _Module:
    """One module: what it says of itself, what it imports from its own package and from elsewhere, and its code."""

    name: str
    says: str
    siblings: tuple[str, ...]
    imports: tuple[_Import, ...]
    body: str
    defined: frozenset[str]


@cache
def assemble(package: str, *, optional: tuple[str, ...] = ()) -> str:
    """Return the modules of the importable `package` as the source of one file: the same text for the same modules.

    Libraries in `optional` are None where they are not installed. The modules import each other by
    `from package.module import name` at their top and nothing else; `__init__` is a docstring; `__main__` comes last.
    Raises `AssemblyError` for another form of import, a circle, a comment among imports (it would get lost), and a name
    that two modules, or a module and an import or a builtin, both give a meaning.
    """
    sources = {
        entry.name.removesuffix(".py"): entry.read_text(encoding="utf-8")
        for entry in sorted(files(package).iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".py")
    }
    return join(package, sources, optional=optional)


def join(package: str, sources: Mapping[str, str], *, optional: Collection[str] = ()) -> str:
    """Return what `assemble` does for modules that are given by name and source."""
    docstring = _docstring_of(package, sources["__init__"])
    modules = {name: _read(package, name, sources[name]) for name in sorted(sources) if name != "__init__"}
    ordered = _ordered(package, modules)
    _require_distinct(ordered)
    imports = {item for module in ordered for item in module.imports}
    sections = "\n\n\n".join(_section(module) for module in ordered)
    return "\n\n".join([docstring, _import_block(imports, optional), sections]) + "\n"


def _docstring_of(package: str, source: str) -> str:
    """Return the literal that `__init__` is."""
    tree = ast.parse(source)
    if ast.get_docstring(tree) is None or len(tree.body) != 1:
        raise AssemblyError(f"{package}: its __init__ is to be a docstring and nothing else")
    return source.strip()


def _read(package: str, name: str, source: str) -> _Module:
    tree = ast.parse(source)
    siblings: list[str] = []
    imports: list[_Import] = []
    head_lines = 0
    body = list(tree.body)
    says = ast.get_docstring(tree)
    if says is not None:
        head_lines = body.pop(0).end_lineno or 0
    while body and isinstance(statement := body[0], ast.Import | ast.ImportFrom):
        body = body[1:]
        head_lines = statement.end_lineno or 0
        sibling = _sibling(package, name, statement)
        if sibling is None:
            imports += _imports(statement)
        else:
            siblings.append(sibling)
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Import | ast.ImportFrom) and _sibling(package, name, node) is not None:
            raise AssemblyError(f"{name}:{node.lineno} imports from {package} below the module's top")
    lines = source.split("\n")
    _require_no_comments(name, lines[:head_lines])
    text = "\n".join(lines[head_lines:]).strip("\n")
    symbols = symtable.symtable(text, name, "exec").get_symbols()
    defined = frozenset(symbol.get_name() for symbol in symbols if symbol.is_assigned())
    return _Module(name, says or "", tuple(siblings), tuple(imports), text, defined)


def _sibling(package: str, name: str, statement: ast.stmt) -> str | None:
    """Return the module of `package` that `statement` imports names from; None for an import from elsewhere."""
    inside = package + "."
    match statement:
        case ast.ImportFrom(module=str(module), names=names, level=0) if module.startswith(inside):
            if all(alias.asname is None and alias.name != "*" for alias in names):
                return module.removeprefix(inside)
        case ast.ImportFrom(module=str(module), level=0) if not f"{module}.".startswith(inside):
            return None
        case ast.Import(names=names) if not any(f"{alias.name}.".startswith(inside) for alias in names):
            return None
    raise AssemblyError(
        f"{name}:{statement.lineno}: {ast.unparse(statement)}: write from {inside}… import NAME, …"
    )


def _imports(statement: ast.Import | ast.ImportFrom) -> list[_Import]:
    if isinstance(statement, ast.Import):
        return [_Import(alias.name, "", alias.asname or "") for alias in statement.names]
    return [_Import(str(statement.module), alias.name, alias.asname or "") for alias in statement.names]


def _require_no_comments(name: str, head: Sequence[str]) -> None:
    for token in tokenize.generate_tokens(io.StringIO("\n".join(head)).readline):
        if token.type == tokenize.COMMENT:
            raise AssemblyError(f"{name}:{token.start[0]}: a comment among imports gets lost: put it below")


def _ordered(package: str, modules: Mapping[str, _Module]) -> list[_Module]:
    """Return every module after those that it imports from, else by name, and `__main__` last."""
    ordered: dict[str, _Module] = {}

    def place(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise AssemblyError(
                f"{' → '.join((*waiting, name))}: these modules of {package} import each other"
            )
        if name not in modules:
            raise AssemblyError(f"{waiting[-1]} imports from {package}.{name}, which is not there")
        if name not in ordered:
            for sibling in modules[name].siblings:
                place(sibling, (*waiting, name))
            ordered[name] = modules[name]

    for name in sorted(modules, key=lambda name: (name == _ENTRY, name)):
        place(name, ())
    return list(ordered.values())


def _require_distinct(modules: Sequence[_Module]) -> None:
    meanings = dict.fromkeys(dir(builtins), "a builtin")
    for module in modules:
        for name, meaning in sorted(item.bound for item in module.imports):
            if meanings.setdefault(name, meaning) != meaning:
                raise AssemblyError(f"{module.name} imports {meaning} as {name}, which is {meanings[name]}")
    for module in modules:
        for name in sorted(module.defined):
            if name in meanings:
                raise AssemblyError(f"{module.name} defines {name}, which is {meanings[name]}")
            meanings[name] = f"defined in {module.name}"


def _import_block(imports: Iterable[_Import], optional: Collection[str]) -> str:
    """Return all imports, each once, in the order and the sections that ruff gives them."""
    sections: dict[str, list[_Import]] = {"future": [], "standard": [], "other": []}
    guarded: dict[str, list[_Import]] = {}
    for item in sorted(imports, key=lambda item: (item.module, item.name, item.alias)):
        root = item.module.partition(".")[0]
        if root in optional:
            guarded.setdefault(root, []).append(item)
        else:
            standing = (
                "future" if root == _FUTURE else "standard" if root in sys.stdlib_module_names else "other"
            )
            sections[standing].append(item)
    blocks = ["\n".join(_import_lines(items)) for items in sections.values() if items]
    for items in guarded.values():
        lines = ["try:", *(f"    {line}" for line in _import_lines(items)), "except ImportError:"]
        lines += [f"    {name} = None" for name in sorted({item.bound[0] for item in items})]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _import_lines(imports: Sequence[_Import]) -> list[str]:
    names: dict[str, list[_Import]] = {}
    for item in imports:
        names.setdefault(item.module if item.name else "", []).append(item)
    whole = [f"import {_named(item.module, item.alias)}" for item in names.pop("", [])]
    return whole + [
        f"from {module} import {', '.join(_named(item.name, item.alias) for item in sorted(items, key=_rank))}"
        for module, items in names.items()
    ]


def _named(name: str, alias: str) -> str:
    return f"{name} as {alias}" if alias else name


def _rank(item: _Import) -> tuple[int, str]:
    """Sort constants before classes before all else, as ruff does."""
    kind = 0 if item.name.isupper() else 1 if item.name[0].isupper() else 2
    return kind, item.name


def _section(module: _Module) -> str:
    """Return a module's code below a heading: its name, and its docstring as a comment."""
    if not module.says:
        raise AssemblyError(f"{module.name} has no docstring to head its part of the file")
    heading = module.name.strip("_").replace("_", " ")
    said = [f"# {line}".rstrip() for line in module.says.split("\n")]
    return "\n".join([f"# -- {heading} --", *said]) + "\n\n\n" + module.body

"""Rules of the house that no import linter can see."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("exporter", "targets", "calibration")
# A program that runs elsewhere ends its own process.
ELSEWHERE = ("targets/devices/probe/",)
MODULES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if not path.relative_to(ROOT).as_posix().startswith(ELSEWHERE)
)
EXITS = {("sys", "exit"), ("os", "_exit"), ("os", "abort")}
# The processes of `isolation` skip interpreter teardown, where native libraries are known to crash.
MAY_EXIT = {f"exporter/system/isolation/{name}.py": {("os", "_exit")} for name in ("child", "server")}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _dotted(node: ast.expr) -> tuple[str, str] | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id, node.attr
    return None


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls of a module, without what runs only where the module itself is the program."""
    for statement in tree.body:
        if isinstance(statement, ast.If) and "__main__" in ast.dump(statement.test):
            continue
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.Call))


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Return every module of the house, parsed."""
    return {_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_the_house_is_there(trees: dict[str, ast.Module]) -> None:
    assert len(trees) > 50
    assert "exporter/cli/terminal/boundary.py" in trees


def test_only_the_command_line_ends_the_process(trees: dict[str, ast.Module]) -> None:
    found = {
        f"{name}:{call.lineno}"
        for name, tree in trees.items()
        if not name.startswith("exporter/cli/") and name != "exporter/__main__.py"
        for call in _calls(tree)
        if (_dotted(call.func) in EXITS - MAY_EXIT.get(name, set()))
        or (isinstance(call.func, ast.Name) and call.func.id in {"exit", "quit"})
    }
    raised = {
        f"{name}:{node.lineno}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and "SystemExit" in ast.dump(node)
    }
    assert found | raised == set(), "raise an EdgeError instead: the boundary turns it into an exit code"


def test_only_the_command_line_prints(trees: dict[str, ast.Module]) -> None:
    found = {
        f"{name}:{call.lineno}"
        for name, tree in trees.items()
        if not name.startswith("exporter/cli/")
        for call in _calls(tree)
        if (isinstance(call.func, ast.Name) and call.func.id == "print")
        or _dotted(call.func) == ("stdout", "write")
    }
    assert found == set(), "speak through exporter.progress"


def test_only_the_command_line_knows_click(trees: dict[str, ast.Module]) -> None:
    found = {
        name
        for name, tree in trees.items()
        if not name.startswith("exporter/cli/")
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Import)
            and any(alias.name.split(".")[0] in {"click", "rich"} for alias in node.names)
        )
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"click", "rich"})
    }
    assert found == set()


def test_what_commands_share_knows_no_command(trees: dict[str, ast.Module]) -> None:
    commands = {
        Path(name).stem for name in trees if Path(name).parent == Path("exporter/cli") and "__" not in name
    }
    found = {
        f"{name}: {module}"
        for name, tree in trees.items()
        if name.startswith(("exporter/cli/views/", "exporter/cli/terminal/"))
        for node in ast.walk(tree)
        for alias in (node.names if isinstance(node, ast.Import | ast.ImportFrom) else ())
        for module in (f"{getattr(node, 'module', '')}.{alias.name}".strip("."),)
        if module.startswith("exporter.cli.") and module.split(".")[2] in commands
    }
    assert found == set(), "move what both need into a view"


def test_no_input_is_checked_by_assert(trees: dict[str, ast.Module]) -> None:
    found = {
        f"{name}:{node.lineno}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    }
    assert found == set(), "python -O removes asserts: raise an EdgeError"


def test_a_broad_except_says_which_foreign_code_it_guards() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {
        f"{_name(path)}:{line}"
        for path in paths
        if not _name(path).startswith("exporter/cli/terminal/")
        for line in _silent_guards(path.read_text(encoding="utf-8"))
    }
    assert found == set(), (
        "name what you expect, or say on the line why nobody can: # tokenizers raises bare Exception"
    )


@pytest.mark.parametrize(
    ("guard", "is_silent"),
    [
        ("except Exception:\n    pass", True),
        ("except Exception:  # noqa: BLE001\n    pass", True),
        ("except Exception:  # noqa: BLE001  the user's code may raise anything\n    pass", False),
        ("except (OSError, SystemExit, BaseException) as error:\n    raise OSError from error", True),
        ("except Exception as error:  # a pickle raises anything\n    raise OSError from error", False),
        ("except BaseException:\n    put_in_order()\n    raise", False),
        ("except (KeyError, MemoryError):\n    pass", False),
        ("except:\n    pass", True),
        ("finally:\n    suppress(Exception)", True),
        ("finally:\n    contextlib.suppress(KeyError)", False),
    ],
)
def test_a_guard_is_silent_unless_it_passes_everything_on(guard: str, is_silent: bool) -> None:
    assert bool(_silent_guards(f"try:\n    run()\n{guard}\n")) == is_silent


def _silent_guards(source: str) -> list[int]:
    """Return the lines that stop any exception and say nothing of it; what ends in a bare `raise` stops none."""
    lines = source.splitlines()
    broad = [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (
            isinstance(node, ast.ExceptHandler)
            and _is_broad(node.type)
            and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
        )
        or (
            isinstance(node, ast.Call)
            and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) == "suppress"
            and any(map(_is_broad, node.args))
        )
    ]
    said = (lines[line - 1].partition("#")[2].partition("noqa: BLE001") for line in broad)
    return [
        line
        for line, (before, _, after) in zip(broad, said, strict=True)
        if not (before + after).strip(" -#")
    ]


def _is_broad(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(map(_is_broad, kind.elts))
    return kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"})


def test_every_error_says_how_to_fix_it(trees: dict[str, ast.Module]) -> None:
    from exporter import errors

    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and name.endswith("Error")}
    bare = {
        f"{name}:{call.lineno}"
        for name, tree in trees.items()
        for call in _calls(tree)
        if (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")) in kinds
        and not any(keyword.arg == "fix" for keyword in call.keywords)
    }
    assert bare == set()


def test_exit_codes_and_names_of_errors_are_one_to_one() -> None:
    from exporter import errors

    leaves = errors.EdgeError.__subclasses__()
    ours = [kind for kind in leaves if kind.__module__ == "exporter.errors"]
    assert len({kind.code for kind in ours}) == len(ours)
    shared = [kind.exit_code for kind in ours]
    assert sorted(shared) == [2, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 70]


@pytest.mark.parametrize(
    "module",
    ["exporter.recipe.planning", "exporter.recipe.recipe", "targets.discovery", "exporter.system.files"],
)
def test_planning_imports_no_framework(module: str) -> None:
    script = (
        f"import {module}, sys\n"
        "from pathlib import Path\n"
        "import importlib.resources\n"
        "from exporter.recipe.planning import make_plan\nfrom exporter.recipe.recipe import read_recipe\n"
        "from targets.discovery import get_target\n"
        "recipe = read_recipe(Path(str(importlib.resources.files('exporter'))) / 'demo' / 'digits-cnn.toml')\n"
        "plan = make_plan(recipe, {name: get_target(name) for name in recipe.targets})\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'onnxscript'}\n"
        "print(len(plan.artifacts), sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, _, loaded = result.stdout.partition(" ")
    assert int(count) > 3
    assert ast.literal_eval(loaded) == []

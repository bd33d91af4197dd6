"""Small modules become one file: in the right order, with everything that people wrote, or not at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from targets.assembly import AssemblyError, assemble, join
from targets.raspberry_pi.script import run_script

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "targets/devices/probe/probe.py": lambda: assemble("targets.devices.probe"),
    "targets/raspberry_pi/runner/run.py": run_script,
}
SMALL = {
    "__init__": '"""Say what there is."""\n',
    "__main__": '''\
"""The program."""

import sys

from small.words import said

if __name__ == "__main__":
    sys.exit(said())
''',
    "words": '''\
"""What is said.

And how.
"""

from __future__ import annotations

import json
import os.path as paths
from typing import IO, Any

import numpy as np

from small.numbers import LIMIT, double

# Why it is so.
WORDS: list[Any] = []  # none yet


def said() -> str:
    """Return it."""
    return json.dumps([double(LIMIT), paths.sep, np is None, *WORDS])
''',
    "numbers": '''\
"""What is counted."""

from __future__ import annotations

import json
from typing import Final, cast

LIMIT: Final = 3


def double(value: int) -> int:
    """Return twice it."""
    return cast(int, json.loads(str(2 * value)))
''',
}
WHOLE = '''\
"""Say what there is."""

from __future__ import annotations

import json
import os.path as paths
import sys
from typing import IO, Any, Final, cast

try:
    import numpy as np
except ImportError:
    np = None

# -- numbers --
# What is counted.


LIMIT: Final = 3


def double(value: int) -> int:
    """Return twice it."""
    return cast(int, json.loads(str(2 * value)))


# -- words --
# What is said.
#
# And how.


# Why it is so.
WORDS: list[Any] = []  # none yet


def said() -> str:
    """Return it."""
    return json.dumps([double(LIMIT), paths.sep, np is None, *WORDS])


# -- main --
# The program.


if __name__ == "__main__":
    sys.exit(said())
'''


def test_modules_follow_what_they_import_and_imports_stand_once_on_top() -> None:
    assert join("small", SMALL, optional=("numpy",)) == WHOLE


def test_the_order_of_files_does_not_matter() -> None:
    assert join("small", dict(reversed(SMALL.items())), optional=("numpy",)) == WHOLE


def test_an_optional_library_is_none_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    module = ModuleType("whole")
    exec(WHOLE, vars(module))
    assert module.said() == '[6, "/", true]'
    with pytest.raises(ImportError):
        exec(join("small", SMALL), vars(ModuleType("whole")))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"__init__": '"""Say."""\nA = 1\n'}, "small: its __init__ is to be a docstring and nothing else"),
        ({"__init__": "A = 1\n"}, "small: its __init__ is to be a docstring and nothing else"),
        ({"new": "A = 1\n"}, "new has no docstring"),
        (
            {"new": '"""N."""\nfrom small.absent import A\n'},
            "new imports from small.absent, which is not there",
        ),
        (
            {"new": '"""N."""\nfrom small.numbers import LIMIT as MOST\n'},
            "new:2: from small.numbers import LIMIT as",
        ),
        ({"new": '"""N."""\nfrom small.numbers import *\n'}, "write from small.… import NAME"),
        ({"new": '"""N."""\nfrom small import numbers\n'}, "new:2: from small import numbers"),
        ({"new": '"""N."""\nimport small.numbers\n'}, "new:2: import small.numbers"),
        ({"new": '"""N."""\nimport small\n'}, "new:2: import small"),
        ({"new": '"""N."""\nfrom .numbers import LIMIT\n'}, "new:2: from .numbers import LIMIT"),
        (
            {"new": '"""N."""\ndef late():\n    from small.numbers import LIMIT\n    return LIMIT\n'},
            "new:3 imports from small below the module's top",
        ),
        ({"new": '"""N."""\nimport os  # for paths\n'}, "new:2: a comment among imports gets lost"),
        ({"new": '"""N."""\nLIMIT = 4\n'}, "numbers defines LIMIT, which is defined in new"),
        (
            {"new": '"""N."""\nwith open("x") as WORDS: pass\n'},
            "words defines WORDS, which is defined in new",
        ),
        ({"new": '"""N."""\ndef open(path): pass\n'}, "new defines open, which is a builtin"),
        ({"new": '"""N."""\nclass json: pass\n'}, "new defines json, which is json"),
        ({"new": '"""N."""\nimport ujson as json\n'}, "numbers imports json as json, which is ujson"),
        (
            {"numbers": '"""N."""\nfrom small.words import said\n'},
            "numbers → words → numbers: these modules of small import each other",
        ),
    ],
)
def test_what_would_mean_something_else_in_one_file_is_refused(changed: dict[str, str], says: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        join("small", SMALL | changed, optional=("numpy",))
    assert says in str(caught.value)


def test_names_inside_functions_are_their_own() -> None:
    inner = '"""N."""\ndef other(said):\n    LIMIT = said\n    return [json for json in LIMIT]\n'
    assert "def other(said):" in join("small", SMALL | {"new": inner}, optional=("numpy",))


# -- the two programs that travel --


@pytest.mark.parametrize("place", PROGRAMS)
def test_a_program_that_travels_reads_like_our_own_code(place: str) -> None:
    source = PROGRAMS[place]()
    for command in (["format", "--check"], ["check"]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--stdin-filename", place, "-"],
            input=source,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(("place", "libraries"), [*zip(PROGRAMS, [{"numpy"}, {"numpy", "PIL"}], strict=True)])
def test_a_program_that_travels_is_python_3_9_and_needs_little(place: str, libraries: set[str]) -> None:
    tree = ast.parse(PROGRAMS[place](), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported - set(sys.stdlib_module_names) == libraries


def test_a_program_that_travels_holds_every_module_of_its_package() -> None:
    for place, program in PROGRAMS.items():
        modules = {path.stem for path in (ROOT / place).parent.glob("*.py")} - {"__init__"}
        headings = [line[5:-3] for line in program().splitlines() if line.startswith("# -- ")]
        assert sorted(headings) == sorted(name.strip("_").replace("_", " ") for name in modules)

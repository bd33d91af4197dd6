"""What tests of a Raspberry Pi bundle's script stand on: the script as a module, from any bundle."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from targets.raspberry_pi.script import RUN_SCRIPT, run_script


def load_script(path: Path | None = None) -> Any:
    """Return the script at `path` as a module of its own, which finds the files beside it; else the one that bundles get.

    A bundle does not change by it: no bytecode is written.
    """
    script = ModuleType("bundle_run_script")
    script.__file__ = str(path or RUN_SCRIPT)
    source = run_script() if path is None else path.read_text(encoding="utf-8")
    exec(compile(source, script.__file__, "exec"), vars(script))
    return script

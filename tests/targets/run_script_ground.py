"""What tests of a Raspberry Pi bundle's script stand on: the script as a module, from any bundle."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from targets.raspberry_pi.target import RUN_SCRIPT


def load_script(path: Path = RUN_SCRIPT) -> Any:
    """Return the script as a module of its own; it finds the files beside it."""
    spec = importlib.util.spec_from_file_location("bundle_run_script", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a bundle must not change by being used
    try:
        spec.loader.exec_module(script)
    finally:
        sys.dont_write_bytecode = before
    return script

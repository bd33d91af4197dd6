"""Who neither compresses nor searches needs none of the libraries that only these two stand on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"accelerate", "torch_pruning", "optuna", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import calibration, exporter, targets

converting = ("exporter.formats.mlpackage", "exporter.formats.tflite")
apart = ("exporter.compress.prune", "exporter.search", "targets.templates", *converting)
for package in (exporter, calibration, targets):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        waiting = [module]
        while waiting:
            found = waiting.pop()
            if found.name.startswith(apart) or found.name == "exporter.__main__":
                continue
            loaded = importlib.import_module(found.name)
            waiting += pkgutil.iter_modules(getattr(loaded, "__path__", ()), found.name + ".")
            print(found.name)
from exporter.search import evaluation, tuning
"""


def test_a_build_without_compression_loads_none_of_them() -> None:
    """Every module but those that prune, search, or convert (the last in processes of their own)."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"exporter.jobs.build", "exporter.compress.steps", "exporter.training.loop"} <= set(
        done.stdout.split()
    )

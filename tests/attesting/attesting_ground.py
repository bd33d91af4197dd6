"""What tests of documents stand on: small builds whose user, host and folders have telling names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report_ground import reported

ROOT = Path(__file__).resolve().parents[2]
USER, HOST, FOLDER = "annabelle-tester", "workbench-of-annabelle", "private-attic"

NET = """
import torch

class TinyNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.head = torch.nn.Linear(4 * 8 * 8, 5)

    def forward(self, image):
        return self.head(torch.relu(self.first(image)).flatten(1))

def build():
    torch.manual_seed(0)
    return TinyNet()
"""

RECIPE = """
[model]
name = "tiny"
version = "1.2.0"
factory = "{folder}/net.py:build"
license = "apache-2.0"
description = "Tells *five* things apart, <b>badly</b>: see [the paper](#)."
labels = ["/", "..", "~", "a|b", "`e`"]
[[model.inputs]]
name = "image"
shape = ["batch", 1, 8, 8]
[data]
calibration = {{ source = "npz", path = "{folder}/data/calibration.npz", labels = "label" }}
evaluation = {{ source = "npz", path = "data/evaluation.npz", labels = "label" }}
preprocess = {{ layout = "NCHW", color = "L", size = [8, 8] }}
[quantize]
keep = ["*first/Conv"]
[gates]
min_sqnr_db = 1
[targets.raspberry-pi]
artifacts = ["onnx:static_wi8_ai8", "ort:float32@fixed"]
[targets.ios]
artifacts = ["onnx:float32@fixed"]
"""

BARE = """
[model]
name = "bare"
version = "0.1.0"
path = "{folder}/float.onnx"
[targets.raspberry-pi]
artifacts = ["onnx:weight_only_wi8"]
"""


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its folder, its recipe, and its report."""

    path: Path
    recipe: Path
    report: dict[str, Any]

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that were built for."""
        return tuple(sorted(self.report["targets"]))

    def document(self, name: str) -> Any:
        """Return the JSON document `name` of the build."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def evidence(self, target: str) -> dict[str, Any]:
        """Return what was measured of each file of a bundle, by the file's name."""
        names = {item["artifact"]: item["file"] for item in self.report["artifacts"]}
        return {names[item["artifact"]]: item for item in self.document(f"{target}/evidence.json")}


def make_project(folder: Path, recipe: str = RECIPE) -> Path:
    """Write a network, its data and its recipe into `folder`; return the recipe, whose paths are partly absolute."""
    (folder / "data").mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    random = np.random.default_rng(0)
    for name, count in {"calibration": 16, "evaluation": 40}.items():
        image = random.uniform(0, 1, (count, 1, 8, 8)).astype(np.float32)
        np.savez(folder / "data" / f"{name}.npz", image=image, label=random.integers(0, 5, count))
    path = folder / "recipe.toml"
    path.write_text(recipe.format(folder=folder))
    return path


def build(recipe: Path, out: Path, **environment: str) -> Built:
    """Build `recipe` in a process of its own, as a user and on a host with telling names."""
    told = {"USER": USER, "LOGNAME": USER, "HOSTNAME": HOST, "XDG_STATE_HOME": str(recipe.parent / "state")}
    result = subprocess.run(
        [sys.executable, "-m", "exporter", "build", str(recipe), "--json", "--out", str(out)],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **told, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    return Built(Path(answer["path"]), recipe, reported(answer))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of `folder` by its path within."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }

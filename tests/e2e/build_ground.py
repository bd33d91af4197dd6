"""What tests of whole builds stand on: the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report_ground import reported

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its folder and what the command line answered."""

    path: Path
    answer: dict[str, Any]

    @property
    def report(self) -> dict[str, Any]:
        """The report, as answered."""
        report: dict[str, Any] = self.answer["report"]
        return report

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that were built for."""
        return tuple(sorted(self.report["targets"]))


def edge_export(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(cwd / "state"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def build(arguments: Sequence[str | Path], cwd: Path, **environment: str) -> Built:
    """Run a build and return it."""
    cwd.mkdir(parents=True, exist_ok=True)
    result = edge_export(*arguments, "--json", "--out", cwd / "out", cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    (cwd / "answer.json").write_text(result.stdout)
    return read_built(cwd)


def read_built(folder: Path) -> Built:
    """Return the build that was run in `folder`."""
    answer = json.loads((folder / "answer.json").read_text())
    reported(answer)
    return Built(Path(answer["path"]), answer)

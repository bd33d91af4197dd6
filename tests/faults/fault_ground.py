"""What fault tests stand on: a small network, its recipe, a finished build, and one way to judge a failure."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from report_ground import reported

from exporter.cli import main

ROOT = Path(__file__).resolve().parents[2]
ERROR_LINE = re.compile(r"error\[(?P<code>E-[a-z]+)\]: (?P<cause>.+); fix: (?P<fix>.+)")

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(4 * 8 * 8, 5)

    def forward(self, image):
        x = torch.relu(self.first(image))
        x = torch.relu(self.second(x))
        return self.head(x.flatten(1))

def build():
    torch.manual_seed(0)
    return Net()
"""

MODEL = {"name": '"tiny"', "version": '"1.0.0"', "factory": '"net.py:build"'}
SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Failure:
    """How one run of the command line failed: its one line, and what `--json` says of it."""

    exit_code: int
    code: str
    cause: str
    fix: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ground:
    """A folder with a network, its data, a recipe, and in `out` the finished build of an older time."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe's path."""
        return self.folder / "recipe.toml"

    @property
    def out(self) -> Path:
        """Where builds go."""
        return self.folder / "out"

    def write_recipe(
        self,
        *,
        model: Mapping[str, str | None] | None = None,
        data: str = 'calibration = { source = "npz", path = "calibration.npz" }',
        shape: str = '["batch", 1, 8, 8]',
        targets: str = '[targets.raspberry-pi]\nartifacts = ["onnx:static_wi8_ai8"]',
        more: str = "",
    ) -> Path:
        """Write the recipe with the given differences; a model key of `None` is left out."""
        table = {**MODEL, **(model or {})}
        lines = [f"{key} = {value}" for key, value in table.items() if value is not None]
        inputs = f'[[model.inputs]]\nname = "image"\nshape = {shape}\n' if shape else ""
        text = "\n".join(["[model]", *lines, inputs, "[data]", data, more, targets, ""])
        self.recipe.write_text(text)
        return self.recipe

    def write_samples(self, array: np.ndarray | None = None, **arrays: np.ndarray) -> None:
        """Write `calibration.npz`."""
        given = arrays if array is None else {"image": array}
        np.savez(self.folder / "calibration.npz", **given)

    def build(self, *options: str) -> tuple[int, str, str]:
        """Build through the command line, in this process; return exit code, stdout and stderr."""
        result = CliRunner().invoke(main, ["build", str(self.recipe), "--out", str(self.out), *options])
        return result.exit_code, result.stdout, result.stderr

    def fails(self, exit_code: int, *mentions: str, options: tuple[str, ...] = ()) -> Failure:
        """Build, and require a failure that is one line, speaks of `mentions`, and changed nothing."""
        before = snapshot(self.out)
        code, stdout, stderr = self.build("--json", *options)
        failure = require_failure(code, stdout, stderr)
        assert failure.exit_code == exit_code, failure
        for mention in mentions:
            assert mention in f"{failure.cause}; fix: {failure.fix}", failure
        assert snapshot(self.out) == before, "an older build was touched, or something was left behind"
        return failure

    def succeeds(self, *options: str) -> dict[str, Any]:
        """Build, and return the report."""
        code, stdout, stderr = self.build("--json", *options)
        assert code == 0, stderr
        return reported(json.loads(stdout))


def require_failure(code: int, stdout: str, stderr: str) -> Failure:
    """Return the failure that the streams tell of, having checked that every channel says the same."""
    assert "Traceback" not in stderr + stdout
    told = [line for line in stderr.splitlines() if line.startswith("error[")]
    assert len(told) == 1, stderr
    assert stderr.splitlines()[-1] == told[0]
    match = ERROR_LINE.fullmatch(told[0])
    assert match, told[0]
    error = json.loads(stdout)["error"]
    assert error["code"] == match["code"]
    assert error["exit_code"] == code
    assert "\n" not in match["cause"]
    return Failure(code, error["code"], error["cause"], error["fix"], error["details"])


def snapshot(folder: Path) -> dict[str, str]:
    """Return every entry below `folder` with its digest, so that equal snapshots mean equal trees."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            entries[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            entries[name] = "folder"
        else:
            entries[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return entries


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["exporter.jobs.build", "exporter.stages.load", "exporter.model.to_onnx", "exporter.model.tidy",
     "exporter.quantize.quantize", "exporter.stages.validate", "onnxruntime", "torch.onnx", "torch.export",
     "torch.onnx._internal.exporter._core", "onnxscript.optimizer", "targets.discovery", "exporter.cli.terminal.bars"]
)  # fmt: skip


class Running:
    """The command line at work in a process of its own, forked from one that has the frameworks imported.

    `stage` and `act`: Python to execute in that process when its progress enters the stage.
    """

    def __init__(
        self, *arguments: str | Path, streams: Path, scratch: Path, stage: str = "", act: str = ""
    ) -> None:
        self._streams = (streams / "stdout", streams / "stderr")
        words = [str(argument) for argument in arguments]
        self._process = _FORKS.Process(
            target=_work, args=(words, *map(str, self._streams), str(scratch), stage, act)
        )
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return not self._process.is_alive()

    def end(self) -> tuple[int, str, str]:
        """Wait for the process; return exit code (negative: signal), stdout and stderr."""
        self._process.join(120)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError("the command line hangs")
        stdout, stderr = (path.read_text() if path.exists() else "" for path in self._streams)
        return self._process.exitcode, stdout, stderr


def _work(arguments: list[str], stdout: str, stderr: str, scratch: str, stage: str, act: str) -> None:
    """What runs in the forked process."""
    for descriptor, name in ((1, stdout), (2, stderr)):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, descriptor)
        os.close(handle)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.environ["XDG_STATE_HOME"] = str(Path(scratch).parent / "state")
    if stage:
        from exporter.cli.terminal import bars

        plain = bars.Lines.step

        def step(self: bars.Lines, name: str, total: int | None = None) -> Any:
            if name == stage:
                exec(act, {})
            return plain(self, name, total)

        bars.Lines.step = step  # type: ignore[method-assign, assignment]
    elif act:
        exec(act, {})
    main(arguments)


def run(*arguments: str | Path, cwd: Path) -> tuple[int, str, str]:
    """Run the command line as a user does, in a fresh interpreter; return exit code, stdout and stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


def lay_ground(folder: Path) -> Ground:
    """Write network, data and recipe into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ground = Ground(folder)
    (folder / "net.py").write_text(NET)
    ground.write_samples(np.random.default_rng(0).normal(size=(SAMPLES, 1, 8, 8)).astype(np.float32))
    ground.write_recipe()
    return ground


def copy_ground(finished: Ground, folder: Path) -> Ground:
    """Return a copy of `finished` to break."""
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    return Ground(folder)

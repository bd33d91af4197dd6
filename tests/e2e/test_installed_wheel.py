"""What is installed from a wheel, in a folder whose own modules are called like ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("exporter", "targets", "calibration")


@dataclass(frozen=True)
class Place:
    """A user's folder, and the folder in which the wheel is installed."""

    folder: Path
    site: Path

    def run(self, *command: str | Path) -> tuple[int, str, str]:
        """Run a command in the user's folder; return exit code, stdout and stderr."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.site), "XDG_STATE_HOME": str(self.site / "state")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a wheel of this tree installs."""
    source = tmp_path_factory.mktemp("source")
    for name in NAMES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys\nfrom setuptools import build_meta\nbuild_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    installed = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", installed]
    subprocess.run([*pip, *options, wheel], cwd=source, check=True)
    return installed


@pytest.fixture
def place(site: Path, tmp_path: Path) -> Place:
    """Return a user's folder with a `targets.py`, a `calibration` and a factory that wants his own `targets`."""
    (tmp_path / "calibration").mkdir()
    for name in ("targets.py", "calibration/__init__.py"):
        (tmp_path / name).write_text("print('mine')\ndef make(): ...\n")
    (tmp_path / "net.py").write_text("def build():\n    from targets import make\n    return make()\n")
    return Place(tmp_path, site)


def test_modules_of_the_users_do_not_stand_for_ours(place: Place) -> None:
    script = place.site / "bin" / "edge-export"
    wanted = place.run("-P", "-m", "exporter", "targets")
    assert wanted[0] == 0
    assert "raspberry-pi" in wanted[1]
    assert place.run("-m", "exporter", "targets") == wanted
    # A module that is called `exporter` is what `-m exporter` means in its folder; the command is still ours.
    (place.folder / "exporter.py").write_text("print('mine')\n")
    assert place.run("-m", "exporter", "targets") == (0, "mine\n", "")
    assert place.run("-P", "-m", "exporter", "targets") == wanted
    assert place.run(script, "targets") == wanted


CALL = """
from pathlib import Path
from exporter.errors import EdgeError
from exporter.system.user_code import load_callable
try:
    load_callable("net.py:build", Path(), key="model.factory", fix="")()
except EdgeError as error:
    print(error.code, error, sep=": ")
"""


def test_a_factory_that_wants_its_own_targets_is_told_to_rename_it(place: Place) -> None:
    code, stdout, stderr = place.run("-P", "-c", CALL)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(
        "E-input: model.factory net.py:build failed: ImportError: cannot import name 'make'"
    )
    assert (
        f"from 'targets' ({place.site / 'targets' / '__init__.py'}) (net.py line 2); fix: rename " in stdout
    )
    assert f"rename {place.folder / 'targets.py'}: targets is the name of something installed" in stdout

"""`scripts/pull_as_pi.sh`: what it says when something is missing, and the whole of it against a real index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pip_ground import publish, serving, with_manifest

from targets.devices import installer

SCRIPT = Path(__file__).parents[3] / "scripts" / "pull_as_pi.sh"


def pull(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "EDGE_MODEL": "tiny", "PYTHON": sys.executable, **variables},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture
def registry(pi_bundle: Path, tmp_path: Path) -> Path:
    publish(with_manifest(pi_bundle), tmp_path / "registry")
    return tmp_path / "registry"


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "says"),
    [
        ([], {}, 2, "name a registry"),
        (["a", "b", "c"], {}, 2, "name a registry"),
        (["--emulate"], {}, 2, "there is no option --emulate"),
        (["absent"], {}, 10, "absent is no folder"),
        (["."], {}, 10, "has no tiny-edge for pip"),
        (["registry"], {"EDGE_MODEL": "other"}, 10, "has no other-edge for pip"),
        (["registry"], {"EDGE_MODEL": "$(id)"}, 2, "is no model's name"),
        (["registry"], {"PYTHON": "python-of-nobody"}, 12, "there is no python-of-nobody here"),
        (["registry", "."], {}, 2, "is not empty"),
        (["registry", "registry/index.html/x"], {}, 15, "cannot be made"),
        (["http://127.0.0.1:9"], {}, 10, "refused"),
        (["ftp:/x"], {}, 10, "is no folder"),
    ],
)
def test_what_is_missing_is_one_line_with_a_fix(
    registry: Path, arguments: list[str], variables: dict[str, str], status: int, says: str
) -> None:
    (registry / "index.html").touch()
    here = [
        str(registry.parent / item) if item in {"registry", ".", "registry/index.html/x"} else item
        for item in arguments
    ]

    ran = pull(*here, **variables)

    assert ran.returncode == status, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "; fix: " in line
    assert ran.stdout == ""


@pytest.mark.slow
def test_the_whole_of_it(registry: Path, tmp_path: Path) -> None:
    """pip brings numpy, Pillow and onnxruntime from the index that this machine uses."""
    with serving(registry) as (url, _):
        ran = pull(url, tmp_path / "work")
    if any(sign in ran.stderr for sign in installer.NO_NETWORK):
        pytest.skip("no package index can be reached from here")
    assert ran.returncode == 0, ran.stderr
    assert f"tiny-edge is {url}/simple/tiny-edge/tiny_edge-1.0.0-py3-none-any.whl" in ran.stdout
    assert "2 golden pictures give their golden tensors" in ran.stdout
    assert "tiny-float32.onnx in onnxruntime-cpu" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "pulled and proven: tiny-edge"

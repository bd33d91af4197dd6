"""What tests of pip's side stand on: a registry of wheels, a web server, and virtual environments with chosen packages.

An environment is real and fresh; packages that are installed here are linked into it, so that no test downloads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from exporter.bundle.manifest import write_manifest
from targets.discovery import get_target
from targets.packaging.base import Ecosystem, Package, PackRequest, Packs, Published, read_bundle
from targets.raspberry_pi import pip_index

RUNTIMES = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert"}


def with_manifest(bundle: Path, *, name: str = "tiny", version: str = "1.0.0") -> Path:
    """Give a bundle the manifest that a build would, under any name and version."""
    (bundle / "manifest.json").unlink(missing_ok=True)
    write_manifest(
        bundle, {"name": name, "version": version, "target": "raspberry-pi", "tool": "edge-exporter 0.0.0"}
    )
    return bundle


def pack(bundle: Path, registry: Path) -> tuple[Published, ...]:
    """Let the target pack a bundle below `registry`; return its packages as a registry describes them."""
    target = get_target("raspberry-pi")
    assert isinstance(target, Packs)
    return tuple(
        described(package, registry) for package in target.pack(PackRequest(read_bundle(bundle), registry))
    )


def described(package: Package, registry: Path) -> Published:
    contents = {path: (registry / path).read_bytes() for path in package.files}
    return Published(
        package,
        {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()},
        {path: len(content) for path, content in contents.items()},
    )


def write_index(published: Sequence[Published], registry: Path) -> None:
    """Write pip's pages for every wheel of `published`."""
    wheels = [item for item in published if item.package.ecosystem is Ecosystem.PIP]
    for path, content in pip_index.view(wheels).items():
        (registry / path).write_bytes(content)


def publish(bundle: Path, registry: Path) -> tuple[Published, ...]:
    """Make `registry` a registry with this one bundle."""
    registry.mkdir(parents=True, exist_ok=True)
    published = pack(bundle, registry)
    write_index(published, registry)
    return published


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        asked: list[str] = self.server.asked  # type: ignore[attr-defined]
        asked.append(self.path)
        super().do_GET()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder over loopback HTTP; yield its URL, and the paths asked for so far."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_venv(folder: Path, *names: str) -> Path:
    """Return the Python of a fresh virtual environment that sees the distributions `names` and what they need."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    for name in _closure(names):
        _link(name, site)
    return folder / "bin" / "python"


def _closure(names: Sequence[str]) -> list[str]:
    left, seen = list(names), set()
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            needs = map(Requirement, distribution(name).requires or ())
            left += [
                need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return sorted(seen)


def _link(name: str, site: Path) -> None:
    """Link everything that a distribution has at the top of its site-packages."""
    found = distribution(name)
    tops = {file.parts[0] for file in found.files or () if ".." not in file.parts}
    for top in sorted(tops - {"__pycache__"}):
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))


def environment() -> dict[str, str]:
    """Return an environment in which pip knows no index but the one it is given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    return {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
    }


def pip(python: Path, *arguments: str, status: int = 0) -> str:
    """Run pip on the environment of `python`; return all it says."""
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "--no-input", *arguments],
        capture_output=True, text=True, env=environment(), cwd=python.parent, timeout=300, check=False,
    )  # fmt: skip
    said = ran.stdout + ran.stderr
    assert ran.returncode == status, said
    return said


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that knows nothing of this checkout."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, env=environment(), cwd=cwd, timeout=300, check=False,
    )  # fmt: skip

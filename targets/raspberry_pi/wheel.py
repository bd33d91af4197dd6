"""A bundle → a wheel: what `pip install` puts on a Raspberry Pi, with nothing to compile and nothing to download later.

The wheel holds the files that run and prove the model, and the bundle's own `run.py`, which finds them beside itself.
Names follow PEP 503 and PEP 440, the archive PEP 427. Knows no target and no registry.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import UnsupportedError
from exporter.system.files import sorted_files
from targets.packaging.base import Bundle
from targets.packaging.zips import zip_of
from targets.raspberry_pi.script import RUN_SCRIPT

REQUIRES_PYTHON = ">=3.11"
SUFFIX = "-edge"
_SCRIPT_API = re.compile(r"^API_VERSION = 1$", re.MULTILINE)
_RUNTIMES = {"onnxruntime": ("onnxruntime", (".onnx", ".ort")), "litert": ("ai-edge-litert", (".tflite",))}
"""Extras, each with its distribution and the files that it runs."""
_WHEEL = b"Wheel-Version: 1.0\nGenerator: edge-exporter\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_STAGES = {"alpha": "a", "beta": "b", "rc": "rc"}


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory: its names, its content, and the METADATA that lies in it; the preferred extra comes first."""

    project: str
    version: str
    extras: tuple[str, ...]
    file: str
    content: bytes
    metadata: bytes


def make_wheel(bundle: Bundle) -> Wheel:
    """Return the wheel of a Raspberry Pi bundle: the same bytes for the same bundle, anywhere.

    Raises `UnsupportedError` (12) for a version that PEP 440 cannot say, and for a bundle whose `run.py` is older than
    the interface that the wheel offers.
    """
    project, version, module = project_name(bundle.name), pep440(bundle.version), module_name(bundle.name)
    stem = f"{project.replace('-', '_')}-{version}"
    extras = _extras(bundle)
    metadata = _metadata(bundle, project, version, module, extras).encode()
    files = {f"{module}/{name}": content for name, content in _package(bundle, project, module).items()}
    files |= {
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": _WHEEL,
        f"{stem}.dist-info/entry_points.txt": f"[console_scripts]\n{project} = {module}.run:command\n".encode(),
    }
    record = f"{stem}.dist-info/RECORD"
    files[record] = _record(files, record)
    return Wheel(project, version, extras, f"{stem}-py3-none-any.whl", zip_of(files), metadata)


# --- names -----------------------------------------------------------------------------------------------


def project_name(name: str) -> str:
    """Return the distribution of a model as PEP 503 normalises it: `digits.cnn` → `digits-cnn-edge`."""
    return re.sub(r"[-_.]+", "-", name + SUFFIX).lower()


def module_name(name: str) -> str:
    """Return what is imported: `digits-cnn` → `digits_cnn_edge`; `model_` goes before a leading digit."""
    module = project_name(name).replace("-", "_")
    return f"model_{module}" if module[0].isdigit() else module


def pep440(version: str) -> str:
    """Return a SemVer as PEP 440 normalises it, so that both order versions alike: `1.0.0-rc.1+ab` → `1.0.0rc1+ab`.

    `alpha`, `beta` and `rc`, alone or with one number, are what both can say; `UnsupportedError` for other prereleases
    (`1.0.0-nightly`, `-rc1`, `-rc.1.2`), which pip would refuse or put in another order. Build metadata becomes the
    local version.
    """
    public, _, build = version.partition("+")
    release, _, prerelease = public.partition("-")
    return release + _prerelease(prerelease, version) + _local(build, version)


def _prerelease(prerelease: str, version: str) -> str:
    if not prerelease:
        return ""
    found = re.fullmatch(r"(alpha|beta|rc)(?:\.(0|[1-9][0-9]*))?", prerelease)
    if found is None:
        raise UnsupportedError(
            f"version {version} has the prerelease {prerelease!r}, which pip cannot say",
            fix="use -alpha.N, -beta.N or -rc.N in model.version",
        )
    return _STAGES[found[1]] + (found[2] or "0")


def _local(build: str, version: str) -> str:
    if not build:
        return ""
    parts = [part for part in re.split(r"[-.]", build.lower()) if part]
    if not parts:
        raise UnsupportedError(
            f"version {version} has the build metadata {build!r}, which pip cannot say",
            fix="use letters, digits and dots after the + in model.version",
        )
    return "+" + ".".join(str(int(part)) if part.isdigit() else part for part in parts)


# --- what is inside --------------------------------------------------------------------------------------


def _package(bundle: Bundle, project: str, module: str) -> dict[str, bytes]:
    """Return the module's files by path within it: the script, and what it reads to run and prove the models."""
    script = (bundle.folder / RUN_SCRIPT).read_bytes()
    if _SCRIPT_API.search(script.decode("utf-8")) is None:
        raise UnsupportedError(
            f"{bundle.folder / RUN_SCRIPT} has no interface that a wheel could offer",
            fix="build the bundle again with this version of edge-exporter",
        )
    files = {
        "__init__.py": _INIT.format(
            name=bundle.name, version=bundle.version, project=project, module=module
        ).encode(),
        "__main__.py": _MAIN.format(module=module).encode(),
        RUN_SCRIPT: script,
    }
    names = [name for model in bundle.models for name in (model.file, *model.companions)]
    kept = [bundle.folder / name for name in ("models.json", "preprocess.json")]
    kept += [path for name in names for path in _files_of(bundle.folder / "models" / name)]
    kept += [path for name in ("golden", "measured") for path in sorted_files(bundle.folder / name)]
    files |= {path.relative_to(bundle.folder).as_posix(): path.read_bytes() for path in kept}
    return files


def _files_of(path: Path) -> list[Path]:
    return sorted_files(path) if path.is_dir() else [path]


_INIT = '''\
"""{name} {version}: the model, what it was validated with, and what runs it.

    from {module} import Model
    model = Model()
    model.predict("photo.jpg")

On the command line: `{project} photo.jpg`, `{project} --replay`. Written by edge-exporter.
"""

from {module}.run import Model, ModelError, Prediction

__all__ = ["Model", "ModelError", "Prediction"]
__version__ = "{version}"
'''

_MAIN = '''\
"""`python -m {module}`: the same as the installed command."""

import sys

from {module}.run import command

if __name__ == "__main__":
    sys.exit(command())
'''


# --- what is said about it -------------------------------------------------------------------------------


def _metadata(bundle: Bundle, project: str, version: str, module: str, extras: Sequence[str]) -> str:
    needs = ["numpy", *(["pillow"] if bundle.contract.get("kind") == "image" else [])]
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project}",
        f"Version: {version}",
        f"Summary: {bundle.name} {bundle.version}: a validated model for {bundle.target}, and what runs it",
        f"Requires-Python: {REQUIRES_PYTHON}",
        *(f"Requires-Dist: {need}" for need in needs),
    ]
    for extra in extras:
        lines += [
            f"Provides-Extra: {extra}",
            f'Requires-Dist: {_RUNTIMES[extra][0]}; extra == "{extra}"',
        ]
    lines += ["Description-Content-Type: text/markdown", ""]
    runtimes = " or ".join(f"`{_RUNTIMES[extra][0]}`" for extra in extras)
    body = f"""\
# {bundle.name} {bundle.version}

```python
from {module} import Model
model = Model()
model.predict("photo.jpg")      # [Prediction(label, score), ...], best first
```

It runs in whichever is installed: {runtimes}. `model.run(array)` takes a tensor that is already prepared.

```
{project} photo.jpg       # the top labels
{project} --replay        # the golden vectors: does this machine answer as the build did?
```

Models in it, preferred first: {", ".join(f"`{model.file}`" for model in bundle.models)}. Each is checked against its
SHA-256 before it is loaded.
"""
    return "\n".join(lines) + "\n" + body


def _extras(bundle: Bundle) -> tuple[str, ...]:
    """Return the extras that can run anything here, that of the preferred model first."""
    wanted = [
        extra
        for model in bundle.models
        for extra, (_, ends) in _RUNTIMES.items()
        if model.file.endswith(ends)
    ]
    return tuple(dict.fromkeys(wanted))


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    """Return the RECORD: path, digest and size of every file, and its own path without them."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(files[name])))
    rows.writerow((own, "", ""))
    return text.getvalue().encode()

"""Bundle × device → the device with the runtimes that the bundle was built with, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from exporter.artifacts import Format
from exporter.benching import Wishes, choose
from exporter.errors import UsageError
from exporter.manifest import read_manifest
from exporter.progress import Progress
from exporter.replay import read_golden, read_versions
from exporter.runtimes.worker import installed_version
from targets.devices import Device, SshDevice
from targets.devices.environment import Way, prepare

_NEEDS = {
    Format.ONNX: ("onnxruntime", "onnxruntime"),
    Format.ORT: ("onnxruntime", "onnxruntime"),
    Format.TFLITE: ("litert", "ai-edge-litert"),
}
"""The runtime's name here, and its distribution."""


def outfit(bundle: Path, device: Device, wishes: Wishes, way: str, *, progress: Progress) -> Device:
    """Return `device` with an environment that has what `wishes` need of `bundle`; `way` is `online` or `carry`.

    Raises `UsageError` (2) for a device that is not behind ssh, and what `prepare` raises.
    """
    if not isinstance(device, SshDevice):
        raise UsageError(
            f"--bootstrap makes an environment on a device behind ssh, and {device.where} is none",
            fix="leave it out: nothing is to be installed there",
        )
    needs = requirements(bundle, wishes)
    with progress.step(f"preparing {device.where}"):
        return prepare(device, needs, Way(way), step=progress.say)


def requirements(bundle: Path, wishes: Wishes) -> list[str]:
    """Return what pip must install to run the chosen files: the versions that built them, else this host's own."""
    entries, _, _ = read_golden(bundle, read_manifest(bundle))
    built_with = read_versions(bundle)
    wanted = {"numpy": "numpy"}
    for entry in choose(entries, wishes.files):
        runtime, distribution = _NEEDS.get(entry.spec.format, ("", ""))
        if not distribution or distribution in wanted or wishes.runtime not in {None, runtime}:
            continue
        version = built_with.get(str(entry.spec)) or installed_version(distribution).partition("+")[0]
        wanted[distribution] = distribution if version == "absent" else f"{distribution}=={version}"
    return list(wanted.values())

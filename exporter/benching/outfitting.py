"""Bundle × device → the device with the runtimes that the bundle was built with, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from exporter.artifacts import Format
from exporter.benching.bench import Wishes
from exporter.benching.subjects import Role, open_bundle
from exporter.errors import UsageError
from exporter.progress import Progress
from exporter.system.converters.environment import version_of
from targets.devices import Device, Place, SshDevice
from targets.devices.environment import Way, prepare

_NEEDS = {
    Format.ONNX: ("onnxruntime", "onnxruntime"),
    Format.ORT: ("onnxruntime", "onnxruntime"),
    Format.TFLITE: ("litert", "ai-edge-litert"),
}
"""The runtime's name here, and its distribution."""


def outfit(bundle: Path, device: Place, wishes: Wishes, way: str, *, progress: Progress) -> Device:
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
    wanted = {"numpy": "numpy"}
    for subject in open_bundle(bundle, Role.OWN, wishes.files).subjects:
        runtime, distribution = _NEEDS[subject.entry.spec.format]
        if distribution in wanted or wishes.runtime not in {None, runtime}:
            continue
        version = subject.built_with or version_of(distribution).partition("+")[0]
        wanted[distribution] = distribution if version == "absent" else f"{distribution}=={version}"
    return list(wanted.values())

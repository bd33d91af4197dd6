"""The wheel on aarch64: its files under the virtual Pi's Python, with the real ARM builds of both runtimes and of Pillow."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from exporter.bundle.manifest import write_manifest
from exporter.errors import DeviceError
from targets.devices import EmulatedDevice, open_device
from targets.devices.wheels import fetch_wheels
from targets.packaging.base import read_bundle
from targets.raspberry_pi.wheel import make_wheel

PROGRAM = """
import json, platform, sys
from tiny_edge import Model, run
told = {"machine": platform.machine(), "status": run.main(["--replay", "--runs", "1", "--threads", "1", "--json"])}
for runtime in ("onnxruntime", "litert"):
    model = Model(runtime=runtime, threads=1)
    told[runtime] = [model.file, model.predict(run.BUNDLE / "golden/0/raw.image.png"), model.replay()["passed"]]
print(json.dumps(told))
"""


@pytest.fixture
def device() -> EmulatedDevice:
    """The core of a Raspberry Pi 5."""
    try:
        device = open_device("emulated:cortex-a76")
    except DeviceError as error:
        pytest.skip(f"the virtual Pi cannot be set up here: {error}")
    assert isinstance(device, EmulatedDevice)
    return device


@pytest.fixture
def pillow(device: EmulatedDevice) -> Path:
    """Pillow's wheel for that machine."""
    guest = {"python": "3.11", "machine": "aarch64", "bits": 64, "libc": ["glibc", "2.36"]}
    try:
        (wheel,) = fetch_wheels(["pillow"], guest, "the virtual Pi")
    except DeviceError as error:
        pytest.skip(f"Pillow for aarch64 cannot be had here: {error}")
    return wheel


@pytest.mark.nightly
def test_the_wheel_predicts_and_replays_on_arm_in_both_runtimes(
    pi_bundle: Path, device: EmulatedDevice, pillow: Path, tmp_path: Path
) -> None:
    facts = {"name": "tiny", "version": "1.0.0", "target": "raspberry-pi", "tool": "edge-exporter 0.0.0"}
    write_manifest(pi_bundle, facts)
    wheel, site = make_wheel(read_bundle(pi_bundle)), tmp_path / "site"
    (tmp_path / wheel.file).write_bytes(wheel.content)
    for path in (tmp_path / wheel.file, pillow):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(site)
    environment = device.pi.environment()
    environment["PYTHONPATH"] = f"{site}:{environment['PYTHONPATH']}"
    settings = [f"{name}={value}" for name, value in environment.items()]

    ran = subprocess.run(
        ["env", "-i", *settings, *device.pi.emulator(device.core), device.pi.python, "-c", PROGRAM],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    report, told = map(json.loads, ran.stdout.splitlines())
    assert (told.pop("machine"), told.pop("status")) == ("aarch64", 0)
    assert report["preprocessing"] == {
        "samples": 2,
        "passed": True,
        "cause": None,
        "says": "2 golden pictures give their golden tensors",
    }
    assert [item["model"] for item in report["models"]] == ["tiny-float32.onnx", "tiny-float32.tflite"]
    assert [item["parity"]["passed"] for item in report["models"]] == [True, True]
    onnx, litert = told["onnxruntime"], told["litert"]
    assert (onnx[0], litert[0]) == ("tiny-float32.onnx", "tiny-float32.tflite")
    assert (onnx[2], litert[2]) == (True, True)
    assert [label for label, _ in onnx[1]] == [label for label, _ in litert[1]]
    assert [score for _, score in onnx[1]] == pytest.approx([score for _, score in litert[1]], abs=1e-5)

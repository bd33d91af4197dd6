"""The part of `scripts/pull_as_pi.sh` that runs on an emulated Cortex-A76: aarch64's own pip, runtimes and Pillow.

    scripts/pull_on_arm.py INDEX PROJECT MODULE PICTURE PIP WORKDIR

PIP is a folder that holds the package `pip`, which is pure Python and runs as it is. Prints parity, and no time: what an
emulator takes says nothing about a board.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from exporter.errors import DeviceError, EdgeError
from targets.devices import EmulatedDevice, open_device
from targets.devices.wheels import fetch_wheels

GUEST = {"python": "3.11", "machine": "aarch64", "bits": 64, "libc": ["glibc", "2.36"]}
PREDICT = """
import platform, sys
from {module} import Model
model = Model(runtime=sys.argv[1])
best = model.predict(sys.argv[2])[0]
print(f"{{platform.machine()}}: {{model}}: {{best.label}} ({{best.score:.5f}})")
"""


def guest(device: EmulatedDevice, path: list[Path | str], *arguments: str) -> str:
    """Run the guest's Python and return what it prints; `DeviceError` with its last line if it fails."""
    environment = {
        **device.pi.environment(),
        "PYTHONPATH": ":".join(map(str, path)),
        "PIP_CONFIG_FILE": "/dev/null",
    }
    settings = [f"{name}={value}" for name, value in environment.items()]
    ran = subprocess.run(
        ["env", "-i", *settings, *device.pi.emulator(device.core), device.pi.python, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        lines = (ran.stderr.strip() or ran.stdout.strip() or "nothing was said").splitlines()
        raise DeviceError(
            f"on the emulated core, {arguments[0]} {arguments[1]} ended with {ran.returncode}: {lines[-1]}",
            fix="run the same on a board; if it fails there too, the wheel is wrong",
        )
    return ran.stdout


def pull(index: str, project: str, module: str, picture: Path, pip: Path, work: Path) -> None:
    """Install the wheel in the guest with pip, predict with each runtime, and replay the golden vectors."""
    device = open_device("emulated:cortex-a76")
    if not isinstance(device, EmulatedDevice):
        raise DeviceError("this is no emulated core", fix="report this as a bug")
    site, tools = work / "arm", work / "tools"
    tools.mkdir()
    (tools / "pip").symlink_to(pip)
    print(
        f"\n$ pip install {project} --index-url {index}        (on an emulated {device.core.name}, aarch64)"
    )
    options = [
        "--no-deps",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--root-user-action",
        "ignore",
    ]
    install = ["-m", "pip", "install", *options, "--target", str(site)]
    said = guest(device, [tools], *install, "--index-url", index, project)
    print(said.strip().splitlines()[-1])
    (pillow,) = fetch_wheels(["pillow"], GUEST, "the virtual Pi")
    guest(device, [tools], *install, "--no-index", str(pillow))
    path = [site, device.pi.environment()["PYTHONPATH"]]
    here = (
        site / module / "golden" / picture.relative_to(next(p for p in picture.parents if p.name == "golden"))
    )
    files = [entry["file"] for entry in json.loads((site / module / "models.json").read_text())["models"]]
    for runtime in sorted({"litert" if file.endswith(".tflite") else "onnxruntime" for file in files}):
        print(guest(device, path, "-c", PREDICT.format(module=module), runtime, str(here)).strip())
    report = json.loads(guest(device, path, "-m", module, "--replay", "--runs", "1", "--json"))
    print(report["preprocessing"]["says"])
    for item in report["models"]:
        if "parity" in item:
            parity = item["parity"]
            own = "" if parity["max_abs"] is None else f"{parity['max_abs']:.6g} from the build, "
            print(
                f"{item['model']} in {item['runtime']}: {parity['samples']} samples, largest difference "
                f"{own}{parity['max_abs_reference']:.6g} from float"
            )


if __name__ == "__main__":
    index, project, module, picture, pip, work = sys.argv[1:]
    try:
        pull(index, project, module, Path(picture), Path(pip), Path(work))
    except EdgeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)

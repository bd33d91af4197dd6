"""A scripted `adb` and the phone behind it: a folder, whose shell commands really run in a shell here."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ADB = """#!{python}
import json, os, shutil, subprocess, sys, time
phone = {phone!r}
scenario = json.load(open(phone + "/scenario.json"))
words = sys.argv[1:]
def count(name):
    path = phone + "/" + name
    number = int(open(path).read()) if os.path.exists(path) else 0
    open(path, "w").write(str(number + 1))
    return number
calls = count("calls")
if "hang" in scenario:
    time.sleep(scenario["hang"])
gone = scenario.get("gone_after") is not None and calls >= scenario["gone_after"]
if words[:1] == ["devices"]:
    sys.stdout.write(scenario["devices"] if not gone else "List of devices attached\\n\\n")
    sys.exit(0)
serial = words[1]
if gone:
    sys.exit("adb: device '%s' not found" % serial)
def here(text):
    for its, ours in (("/data/", "/data/"), ("/sys/", "/sys/"), ("/system/bin", "/bin")):
        text = text.replace(its, phone + ours)
    return text
if words[2] == "push":
    target = here(words[4])
    if scenario.get("full"):
        sys.exit("adb: error: failed to copy: remote write failed: No space left on device")
    shutil.copy(words[3], target)
    if scenario.get("corrupt") and words[3].endswith(scenario["corrupt"]):
        open(target, "r+b").write(b"????")
    if words[3].endswith(scenario.get("program", "\\0")):
        shutil.move(target, target + ".pushed")
        open(target, "w").write(scenario["script"].ljust(os.path.getsize(target + ".pushed"), "#"))
    sys.exit(0)
command = here(words[-1])
environment = dict(os.environ, PATH=phone + "/bin:" + os.environ["PATH"])
sys.exit(subprocess.run(["sh", "-c", command], env=environment).returncode)
"""
_TOOLS = {
    "sha256sum": 'test -f {phone}/no_sha256sum && exit 127; f=$1; test -f "$f.pushed" && f=$f.pushed; '
    'exec env PATH=/usr/bin:/bin sha256sum "$f"',
    "getprop": 'case "$1" in *abilist) echo arm64-v8a,armeabi-v7a;; *manufacturer) echo Acme;; *product.model) echo One;; '
    "*soc.model) echo X1;; *release) echo 14;; esac",
    "pm": 'test -f {phone}/termux && echo "package:/data/app/com.termux/base.apk"; true',
    "run-as": "test -f {phone}/locked && {{ echo 'run-as: unable to set SELinux context' >&2; exit 1; }}; "
    "test -f {phone}/debuggable || {{ echo 'run-as: package not debuggable: com.termux' >&2; exit 1; }}; "
    'shift; exec "$@"',
    "dumpsys": "n=$(cat {phone}/heat 2>/dev/null | head -1); sed -i 1d {phone}/heat 2>/dev/null; "
    'echo "IsStatusOverride: false"; echo "Thermal Status: ${{n:-0}}"; '
    'echo "Cached temperatures:"; echo "Temperature{{mValue=77.0, mType=0, mName=CPU0, mStatus=0}}"; '
    'echo "Current temperatures from HAL:"; echo "Temperature{{mValue=41.5, mType=0, mName=CPU0, mStatus=0}}"; '
    'echo "Temperature{{mValue=-99.9, mType=6, mName=PA, mStatus=0}}"; echo "Current cooling devices from HAL:"; '
    'echo "CoolingDevice{{mValue=90, mType=0, mName=fan}}"',
}


@dataclass(frozen=True, slots=True)
class Phone:
    """The folder that plays the phone."""

    folder: Path

    def plays(self, **scenario: Any) -> None:
        """Set what `adb` does; `devices` is what follows the list's heading."""
        devices = scenario.pop(
            "devices", "PHONE1 device usb:1-1 product:acme model:Acme_One transport_id:1\n"
        )
        heading = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
        told = {"devices": f"{heading}List of devices attached\n{devices}\n", **scenario}
        (self.folder / "scenario.json").write_text(json.dumps(told))

    def heat(self, *levels: int) -> None:
        """Set the thermal statuses that Android tells next; afterwards it is cool."""
        (self.folder / "heat").write_text("".join(f"{level}\n" for level in levels))

    def has_termux(self, *, debuggable: bool = True, python: bool = True) -> None:
        """Install Termux."""
        (self.folder / "termux").touch()
        if debuggable:
            (self.folder / "debuggable").touch()
        home = self.folder / "data/data/com.termux/files/usr"
        (home / "bin").mkdir(parents=True)
        (home / "tmp").mkdir()
        if python:
            path = home / "bin" / "python3"
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            path.chmod(0o755)

    @property
    def left(self) -> list[str]:
        """What lies in the phone's scratch folders."""
        places = [self.folder / "data/local/tmp", self.folder / "data/data/com.termux/files/usr/tmp"]
        return [str(path) for place in places if place.is_dir() for path in place.iterdir()]


def make_phone(folder: Path, path_folder: Path) -> Phone:
    """Return a phone in `folder`, whose `adb` lies in `path_folder`."""
    for name in ("data/local/tmp", "bin", "sys/devices/system/cpu/cpu0/cpufreq"):
        (folder / name).mkdir(parents=True)
    (folder / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").write_text("schedutil\n")
    (folder / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("1800000\n")
    scripts = {
        folder / "bin" / name: f"#!/bin/sh\n{text.format(phone=folder)}\n" for name, text in _TOOLS.items()
    }
    path_folder.mkdir()
    scripts[path_folder / "adb"] = _ADB.format(python=sys.executable, phone=str(folder))
    for path, text in scripts.items():
        path.write_text(text)
        path.chmod(0o755)
    phone = Phone(folder)
    phone.plays()
    return phone


def elf(path: Path, machine: int = 183) -> Path:
    """Write the head of an ELF file for a processor, 183 being aarch64."""
    path.write_bytes(
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little") + os.urandom(8172)
    )
    return path

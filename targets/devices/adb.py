"""An Android phone behind `adb`: which one, in what state, and the probe under Termux's Python on it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

from exporter.errors import DeviceError, EdgeError, TimeLimitError, UsageError
from targets.devices.base import BOOTSTRAP, cleaned, last_line

PREFIX = "adb"
TERMUX = "/data/data/com.termux/files"
_SERIAL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,98}[A-Za-z0-9])?")
_PATIENCE_S: Final = 20.0
_BY_SSH = (
    "in Termux: pkg install openssh && sshd; here: adb forward tcp:8022 tcp:8022, then --on ssh://USER@localhost:8022 "
    "with the USER that whoami tells in Termux; or give a benchmark program with --benchmark"
)
_STATES = {
    "unauthorized": ("does not trust this computer yet", "unlock it and accept the dialog on its screen"),
    "authorizing": ("is just being asked for its trust", "unlock it, accept the dialog, and try again"),
    "offline": ("is offline", "plug it in again, or: adb reconnect offline"),
    "no permissions": (
        "may not be opened by this user",
        "add the udev rules (apt install android-sdk-platform-tools-common) and join the group plugdev",
    ),
    "recovery": ("is in recovery", "start Android: adb reboot"),
    "rescue": ("is in rescue mode", "start Android: adb reboot"),
    "sideload": ("is in sideload mode", "start Android: adb reboot"),
    "bootloader": ("is in its bootloader", "start Android: fastboot reboot"),
    "host": ("is in host mode", "plug it in again"),
}


@dataclass(frozen=True, slots=True)
class AdbDevice:
    """`adb` (the only phone there is) or `adb:SERIAL`."""

    where: str
    serial: str | None = None

    @classmethod
    def parse(cls, where: str) -> AdbDevice:
        """Return the device of an address; `UsageError` (2) if its serial is no plain name."""
        head, colon, serial = where.partition(":")
        if head != PREFIX or (colon and not _SERIAL.fullmatch(serial)):
            raise UsageError(
                f"--on {cleaned(where)!r} names no phone",
                fix="use adb, or adb:SERIAL with a serial that adb devices shows",
            )
        return cls(where, serial or None)

    def command(self) -> list[str]:
        """Return the command that starts Termux's Python on the phone; `DeviceError` (18) says what is missing."""
        serial = self.found()
        self._require_termux(serial)
        settings = {
            "HOME": f"{TERMUX}/home",
            "PREFIX": f"{TERMUX}/usr",
            "TMPDIR": f"{TERMUX}/usr/tmp",
            "PATH": f"{TERMUX}/usr/bin:/system/bin",
        }
        words = ["run-as", "com.termux", "env", *(f"{name}={value}" for name, value in settings.items())]
        words += [f"{TERMUX}/usr/bin/python3", "-c", BOOTSTRAP]
        return ["adb", "-s", serial, "shell", "-T", shlex.join(words)]

    def explain(self, exit_code: int, complaint: str) -> EdgeError:
        """Return why the probe ended without an answer."""
        self.found()  # a phone that went away is the reason, whatever adb's last words were
        return DeviceError(
            f"{self.where}: the probe ended with exit code {exit_code}: {last_line(complaint)}",
            fix="try again; -v names the log",
        )

    def found(self) -> str:
        """Return the serial of the phone, which is there and answers; `DeviceError` (18) names its state otherwise."""
        ran = run_adb("devices", "-l")
        if ran.returncode:
            raise DeviceError(
                f"adb cannot list phones: {last_line(shown(ran.stderr))}", fix="adb kill-server"
            )
        phones = list(listed(shown(ran.stdout)))
        if self.serial is not None:
            phones = [phone for phone in phones if phone[0] == self.serial]
        if not phones:
            raise DeviceError(
                "no phone is attached" if self.serial is None else f"no phone has the serial {self.serial}",
                fix="plug it in and switch on USB debugging (Settings, Developer options); adb devices must show it",
            )
        ready = [phone for phone in phones if phone[1] == "device"]
        if len(ready) > 1:
            names = ", ".join(f"{serial} ({model or 'unnamed'})" for serial, _, model in ready)
            raise DeviceError(
                f"{len(ready)} phones are attached: {names}", fix=f"name one: --on adb:{ready[0][0]}"
            )
        if not ready:
            serial, state, _ = phones[0]
            told, fix = _STATES.get(
                state, (f"is in the state {state!r}", "start Android on it and try again")
            )
            raise DeviceError(f"the phone {serial} {told}", fix=fix)
        return ready[0][0]

    def shell(self, serial: str, command: str, *, patience_s: float = _PATIENCE_S) -> tuple[int, str]:
        """Return exit code and output of `command`, shell text of our own, on the phone."""
        ran = run_adb("-s", serial, "shell", "-T", f"{command} 2>&1", patience_s=patience_s)
        output = shown(ran.stdout)
        if ran.returncode and not output.strip():
            self.found()
            raise DeviceError(f"{self.where} failed: {last_line(shown(ran.stderr))}", fix="try again")
        return ran.returncode, output

    def _require_termux(self, serial: str) -> None:
        if "package:" not in self.shell(serial, "pm path com.termux 2>/dev/null; true")[1]:
            raise DeviceError(
                f"{self.where} has no Termux, so no Python to measure with",
                fix="give LiteRT's benchmark_model or onnxruntime_perf_test with --benchmark, or install Termux",
            )
        code, told = self.shell(serial, "run-as com.termux id")
        if code:
            why = "it is no debug build" if "debuggable" in told else last_line(told)
            raise DeviceError(f"{self.where}: its Termux does not let adb in ({why})", fix=_BY_SSH)
        code, told = self.shell(serial, f"run-as com.termux ls {TERMUX}/usr/bin/python3")
        if code:
            raise DeviceError(
                f"{self.where}: its Termux has no Python: {last_line(told)}",
                fix="in Termux: pkg install python python-numpy python-onnxruntime",
            )


def listed(text: str) -> list[tuple[str, str, str | None]]:
    """Return serial, state and model of each phone in what `adb devices -l` says."""
    found = []
    for line in text.partition("List of devices attached")[2].splitlines():
        words = line.split()
        if len(words) < 2 or line.startswith("*"):
            continue
        state = "no permissions" if words[1:3] == ["no", "permissions"] else words[1].rstrip(";")
        model = re.search(r"\bmodel:(\S+)", line)
        found.append((words[0], state, model[1] if model else None))
    return found


def run_adb(*arguments: str, patience_s: float = _PATIENCE_S) -> subprocess.CompletedProcess[bytes]:
    """Return what `adb` did; `DeviceError` (18) if there is none, `TimeLimitError` (16) if it does not answer."""
    # By its path: of a first adb that is broken, the system would pass on to a second one without a word.
    program = shutil.which("adb")
    if program is None:
        raise DeviceError(
            "adb is not installed", fix="apt install adb, or put Android's platform-tools on the PATH"
        )
    try:
        return subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience_s,
            check=False,
        )
    except OSError as error:
        raise DeviceError(f"adb cannot be run: {error.strerror}", fix="reinstall adb") from error
    except subprocess.TimeoutExpired as error:
        raise TimeLimitError(
            f"adb has not answered for {patience_s:.0f} s",
            fix="adb kill-server, plug the phone in again, try again",
        ) from error


def shown(output: bytes) -> str:
    """Return what adb or the phone printed, without terminal escapes."""
    told: str = cleaned(output.decode("utf-8", errors="replace"), keep="\n")
    return told

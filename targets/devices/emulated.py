"""An emulated ARM core as a device: parity on real ARM kernels, and the number of instructions of one inference.

The count is what a core executes, not how long it takes: caches, memory and the width of the pipeline are not in it. It is
never called a latency.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from exporter.errors import DeviceError, EdgeError, UsageError
from targets.devices.base import BOOTSTRAP, last_line
from targets.devices.virtual_pi import CORES, Core, VirtualPi, set_up

PREFIX = "emulated:"


@dataclass(frozen=True, slots=True)
class EmulatedDevice:
    """One core of `CORES` under QEMU's user mode."""

    core: Core
    pi: VirtualPi

    @classmethod
    def parse(cls, where: str, say: Callable[[str], None]) -> EmulatedDevice:
        """Return the device that `emulated:CORE` names, the virtual Pi being set up first if it is not there."""
        core = CORES.get(where.removeprefix(PREFIX))
        if core is None:
            raise UsageError(
                f"no such core: {where!r}", fix="use " + ", ".join(PREFIX + name for name in CORES)
            )
        return cls(core, set_up(say))

    @property
    def where(self) -> str:
        """The place as the user named it."""
        return PREFIX + self.core.name

    def command(self) -> list[str]:
        """Return the command that reads the probe from its standard input; its workers count instructions."""
        emulator = self.pi.emulator(self.core)
        environment = {
            **self.pi.environment(),
            "EDGE_ROOT": str(self.pi.root(self.core)),
            "EDGE_COUNTING": json.dumps([*emulator, *self.pi.counting(), self.pi.python]),
            "EDGE_LAUNCHER": json.dumps([*emulator, self.pi.python]),
        }
        settings = [f"{name}={value}" for name, value in environment.items()]
        return ["env", "-i", *settings, *emulator, self.pi.python, "-c", BOOTSTRAP]

    def explain(self, exit_code: int, complaint: str) -> EdgeError:
        """Return why the probe ended without an answer."""
        return DeviceError(
            f"the emulated probe ended with exit code {exit_code}: {last_line(complaint)}",
            fix=f"delete {self.pi.home} and try again; if it persists, send the log",
        )

"""A Raspberry Pi's userland and an emulator for its processor, in a cache folder; where `--on emulated:CORE` runs.

QEMU's user mode translates one process: the real aarch64 Python, onnxruntime and LiteRT run, with the instructions of the
chosen core and no others. The runtimes choose their kernels by `/proc/cpuinfo`, which this QEMU passes through from the
host; each core therefore has a root of its own with the file that the real one shows.
"""

from __future__ import annotations

from targets.devices.virtual_pi.cores import CORES, Core
from targets.devices.virtual_pi.home import VirtualPi, set_up

__all__ = ["CORES", "Core", "VirtualPi", "set_up"]

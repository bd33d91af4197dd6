"""The cores of the Raspberry Pi boards as their kernels describe them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROCESSORS = 4
_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)


@dataclass(frozen=True, slots=True)
class Core:
    """One core: QEMU's name for it, the boards that have it, and what `/proc/cpuinfo` says of it."""

    name: str
    boards: str
    variant: int
    part: int
    revision: int
    features: str

    def write(self, root: Path) -> None:
        """Write the files below `root` by which runtimes recognise the core."""
        paragraph = (
            "processor\t: {}\nBogoMIPS\t: 108.00\n"
            f"Features\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: {self.variant:#x}\nCPU part\t: {self.part:#05x}\nCPU revision\t: {self.revision}\n\n"
        )
        texts = {
            "proc/cpuinfo": "".join(paragraph.format(number) for number in range(_PROCESSORS)),
            "proc/device-tree/model": f"emulated {self.name} (as in {self.boards})",
            **{
                f"sys/devices/system/cpu/{name}": f"0-{_PROCESSORS - 1}\n"
                for name in ("possible", "present", "online")
            },
        }
        for name, text in texts.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", "Raspberry Pi 3 and Zero 2 W", 0x0, 0xD03, 4, _ARMV8),
        Core("cortex-a72", "Raspberry Pi 4", 0x0, 0xD08, 3, _ARMV8),
        Core("cortex-a76", "Raspberry Pi 5", 0x4, 0xD0B, 1, _ARMV8_2),
    )
}

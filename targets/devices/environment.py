"""Give a device behind ssh an environment with the runtimes: asked first what it is, then told to make one.

The work is done there by `installer.py`, which travels with the probe; this side fetches wheels for a board without
network and sends them the same way as models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import DeviceError
from targets.devices import installer
from targets.devices.base import Parcel, converse
from targets.devices.ssh import SshDevice
from targets.devices.wheels import fetch_wheels, unpacked_bytes

_EMPTY_BYTES = 30_000_000
"""An environment with nothing but pip."""
_ROUGH_BYTES = {"numpy": 75_000_000, "onnxruntime": 85_000_000, "ai-edge-litert": 65_000_000}
"""Unpacked, with what they need."""
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{0,40}$")]


class Way(StrEnum):
    """Who fetches the wheels: the device itself, or this host for it."""

    ONLINE = "online"
    CARRY = "carry"


class _Found(BaseModel):
    """What `installer.serve` answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    python: Annotated[str, Field(pattern=r"^3\.[0-9]{1,3}$")]
    machine: _Word
    bits: int
    libc: tuple[_Word, _Word]
    cannot: str | None
    ready: Annotated[str, Field(pattern=r"^/", max_length=4096)] | None


def prepare(
    device: SshDevice, requirements: Sequence[str], way: Way, *, step: Callable[[str], None]
) -> SshDevice:
    """Return `device` with the Python of an environment there that has `requirements` (`numpy`, `onnxruntime==1.2`).

    It is made if it is not there or not whole. Raises what `converse` raises; `DeviceError` (18) if it cannot be made.
    """
    found = _ask(device, {"do": "describe", "requirements": list(requirements)}, [], step)
    if found.ready is None:
        if found.cannot is not None:
            raise DeviceError(
                f"{device.where}: {found.cannot}", fix="on the device: sudo apt install python3-venv"
            )
        found = _make(device, found, requirements, way, step)
    if found.ready is None:
        raise DeviceError(
            f"{device.where}: the environment was made and is gone again",
            fix="see that nothing empties ~/.cache there, and run the same command again",
        )
    step(f"Python on the device: {found.ready}")
    return dataclasses.replace(device, options=dataclasses.replace(device.options, python=found.ready))


def _make(
    device: SshDevice, found: _Found, requirements: Sequence[str], way: Way, step: Callable[[str], None]
) -> _Found:
    wheels: list[Path] = []
    need = sum(_ROUGH_BYTES.get(item.partition("==")[0], 0) for item in requirements)
    if way is Way.CARRY:
        step(f"fetch wheels for Python {found.python} on {found.machine}")
        wheels = fetch_wheels(requirements, found.model_dump(mode="json"), device.where)
        need = unpacked_bytes(wheels)
    request = {
        "do": "install",
        "requirements": list(requirements),
        "need_bytes": need + _EMPTY_BYTES,
        "carried": way is Way.CARRY,
    }
    return _ask(device, request, [Parcel(path, f"wheels/{path.name}") for path in wheels], step)


def _ask(
    device: SshDevice, request: Mapping[str, Any], parcels: Sequence[Parcel], step: Callable[[str], None]
) -> _Found:
    program = Parcel(Path(installer.__file__), "installer.py")
    answer = converse(device, request, [program, *parcels], step=step)
    try:
        return _Found.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        raise DeviceError(
            f"{device.where} answered nonsense at {'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="the device or what stands between is not to be trusted; measure elsewhere",
        ) from error

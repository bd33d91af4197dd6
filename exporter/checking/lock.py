"""`edge.lock.json`: the figures that were last accepted, committed beside the recipe, one sorted line each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.checking.figures import KINDS, Figures, Key
from exporter.errors import InputError
from exporter.system.files import canonical_json, write_bytes

LOCK_NAME = "edge.lock.json"
_FORMAT = 1
_LARGEST_BYTES = 16 << 20

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Artifact(_Table):
    size_mb: Number | None = None
    metric: Number | None = None
    agreement: Number | None = None
    sqnr_db: Number | None = None
    devices: Mapping[str, Mapping[str, Number]] = {}


class _Bundle(_Table):
    version: str
    artifacts: Mapping[str, _Artifact]


class _Document(_Table):
    format: int
    allow: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    bundles: Mapping[str, _Bundle] = {}


@dataclass(frozen=True, slots=True)
class Lock:
    """Accepted figures by bundle (`NAME/TARGET`), and how much worse each kind may become."""

    path: Path
    allow: Mapping[str, float]
    bundles: Mapping[str, Mapping[Key, float]]
    versions: Mapping[str, str]
    text: str = ""

    def line_of(self, bundle: str, key: Key) -> int | None:
        """Return the line of the file on which a figure stands, counted from one."""
        artifact, device, kind = key
        path = [bundle, artifact, *([] if device is None else [device]), kind]
        at = 0
        for name in path:
            at = self.text.find(f"{json.dumps(name, ensure_ascii=False)}:", at)
            if at < 0:
                return None
        return self.text.count("\n", 0, at) + 1


def read_lock(path: Path) -> Lock | None:
    """Return the lock in `path`, or None if there is no such file; `InputError` (10) if it is not one."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", fix="name a lock file with --lock"
        ) from error
    try:
        text = content[:_LARGEST_BYTES].decode("utf-8")
        document = _Document.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", fix=_MEND) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}", fix=_MEND) from error
    if document.format != _FORMAT:
        raise InputError(
            f"{path} has format {document.format}; this tool reads {_FORMAT}", fix="update edge-exporter"
        )
    if unknown := sorted(set(document.allow) - set(KINDS)):
        raise InputError(f"{path}: allow.{unknown[0]}: no such figure", fix=f"known: {', '.join(KINDS)}")
    bundles = {name: dict(_flat(bundle)) for name, bundle in document.bundles.items()}
    versions = {name: bundle.version for name, bundle in document.bundles.items()}
    return Lock(path, _allowances(document.allow), bundles, versions, text)


_MEND = "take it from version control, or write it anew: edge-export check BUNDLE --update"


def _flat(bundle: _Bundle) -> Iterator[tuple[Key, float]]:
    for name, artifact in bundle.artifacts.items():
        for kind in ("size_mb", "metric", "agreement", "sqnr_db"):
            value = getattr(artifact, kind)
            if value is not None:
                yield (name, None, kind), value
        for device, told in artifact.devices.items():
            yield from (((name, device, kind), value) for kind, value in told.items() if kind in KINDS)


def _allowances(given: Mapping[str, float]) -> dict[str, float]:
    return {kind: given.get(kind, facts.allowance) for kind, facts in KINDS.items()}


def empty_lock(path: Path) -> Lock:
    """Return a lock that holds nothing yet."""
    return Lock(path, _allowances({}), {}, {})


def accepted(lock: Lock, figures: Figures) -> Lock:
    """Return `lock` with the figures of one bundle as they are now.

    Figures of devices that did not measure this time stay, as long as the artifact does.
    """
    before, artifacts = lock.bundles.get(figures.name, {}), {key[0] for key in figures.values}
    kept = {
        key: value
        for key, value in before.items()
        if key[0] in artifacts and key[1] is not None and key[1] not in figures.devices
    }
    return Lock(
        lock.path,
        lock.allow,
        {**lock.bundles, figures.name: {**kept, **figures.values}},
        {**lock.versions, figures.name: figures.version},
    )


def write_lock(lock: Lock) -> None:
    """Write `lock` where it came from, whole or not at all."""
    bundles: dict[str, Any] = {}
    for name, values in lock.bundles.items():
        artifacts: dict[str, Any] = {}
        for (artifact, device, kind), value in values.items():
            told = artifacts.setdefault(artifact, {"devices": {}})
            (told if device is None else told["devices"].setdefault(device, {}))[kind] = _rounded(value)
        bundles[name] = {"version": lock.versions[name], "artifacts": artifacts}
    write_bytes(lock.path, canonical_json({"format": _FORMAT, "allow": dict(lock.allow), "bundles": bundles}))


def _rounded(value: float) -> float:
    """Return six significant digits: what a diff should show, and less than any allowance."""
    return float(f"{value:.6g}")
